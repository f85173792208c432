"""What a ValidatingAdmissionPolicy of the shipped files says to a request."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import celpy
from celpy.adapter import json_to_cel

from tests.deploy.rendering import the

if TYPE_CHECKING:
    from tests.deploy.rendering import Object


def evaluated(expression: str, **context: Any) -> object:
    """What an expression of the Common Expression Language yields."""
    given = {name: json_to_cel(value) for name, value in context.items()}
    return _program(expression).evaluate(given)


@cache
def _program(expression: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(expression))


def account_of(found: list[Object]) -> str:
    """The user as which the plugin of these objects calls the API server."""
    daemon_set = the(found, "DaemonSet")
    account = daemon_set["spec"]["template"]["spec"]["serviceAccountName"]
    return f"system:serviceaccount:{daemon_set['metadata']['namespace']}:{account}"


class Admission:
    """The API server's judgement by the policy of some objects."""

    def __init__(self, found: list[Object]) -> None:
        self.policy = the(found, "ValidatingAdmissionPolicy")
        binding = the(found, "ValidatingAdmissionPolicyBinding")["spec"]
        assert binding == {
            "policyName": self.policy["metadata"]["name"],
            "validationActions": ["Deny"],
        }

    def says(
        self, operation: str, user: str, node: str | None, old: Object | None, new: Object | None
    ) -> str:
        """Why a request is denied, "" if it is not; `node` is what the token is bound to."""
        extra = {"authentication.kubernetes.io/node-name": [node]} if node else {}
        request = {"operation": operation, "userInfo": {"username": user, "extra": extra}}
        context = {"request": request, "object": new, "oldObject": old}
        spec = self.policy["spec"]
        if not all(evaluated(one["expression"], **context) for one in spec["matchConditions"]):
            return ""
        values: dict[str, object] = {}
        for one in spec["variables"]:
            values[one["name"]] = evaluated(one["expression"], **context, variables=values)
        for one in spec["validations"]:
            if not evaluated(one["expression"], **context, variables=values):
                return str(one["message"])
        return ""
