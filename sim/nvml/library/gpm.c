/* Takes a request for GPM metrics apart: its size depends on the caller's version, and each metric has names. */
#include "internal.h"

#include <stdlib.h>

#define VERSION 1

struct names {
    const char *brief, *full, *unit;
};

struct metric {
    uint32_t id;
    int32_t code;
    double value;
    struct names names;
};

struct request {
    uint32_t version;
    uint32_t count;
    void *first, *second;
    struct metric metrics[];
};

struct inner_metric {
    uint32_t id;
    int32_t code;
    double value;
};

static struct names names_of(uint32_t id)
{
    switch (id) {
    case 1:
        return (struct names){"graphics", "Graphics utilization", "%"};
    case 2:
        return (struct names){"sm", "SM utilization", "%"};
    case 10:
        return (struct names){"dram", "DRAM bandwidth utilization", "%"};
    case 20:
        return (struct names){"pcie-tx", "PCIe traffic from the GPU", "MiB/s"};
    case 21:
        return (struct names){"pcie-rx", "PCIe traffic to the GPU", "MiB/s"};
    case 60:
        return (struct names){"nvlink-rx", "NVLink traffic to the GPU", "MiB/s"};
    case 61:
        return (struct names){"nvlink-tx", "NVLink traffic from the GPU", "MiB/s"};
    default:
        return (struct names){"", "", ""};
    }
}

EXPORT int nvmlGpmMetricsGet(struct request *request)
{
    if (!is_initialised())
        return UNINITIALIZED;
    if (request == NULL || request->count > MOST_READ)
        return INVALID_ARGUMENT;
    if (request->version != VERSION)
        return ARGUMENT_VERSION_MISMATCH;
    struct inner_metric *metrics = calloc(request->count + 1, sizeof *metrics);
    if (metrics == NULL)
        return INSUFFICIENT_RESOURCES;
    for (uint32_t at = 0; at < request->count; at++)
        metrics[at].id = request->metrics[at].id;
    int code = sim_nvmlGpmMetricsGet((uintptr_t)request->first, (uintptr_t)request->second,
                                     request->count, metrics);
    for (uint32_t at = 0; code == SUCCESS && at < request->count; at++) {
        request->metrics[at].code = metrics[at].code;
        request->metrics[at].value = metrics[at].value;
        request->metrics[at].names = names_of(metrics[at].id);
    }
    free(metrics);
    return code;
}
