"""Ask the plugin of every node whether it is ready; ends with 1 unless all are."""

import socket
import sys
import urllib.error
import urllib.request

service, port = sys.argv[1:]
addresses = sorted({found[4][0] for found in socket.getaddrinfo(service, port, socket.AF_UNSPEC)})
ready = 0
for address in addresses:
    host = f"[{address}]" if ":" in address else address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/ready", timeout=10) as answer:
            answer.read()
        ready += 1
        print(f"{address} is ready")
    except urllib.error.HTTPError as error:
        print(f"{address} is not ready: {error.read().decode(errors='replace')}")
    except OSError as error:
        print(f"{address} does not answer: {error}")
print(f"{ready} of {len(addresses)} plugins are ready")
sys.exit(ready != len(addresses))
