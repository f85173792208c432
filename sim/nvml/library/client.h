/* What the generated functions and the rest of the library share: how the arguments of a function travel.
   The numbers of the kinds are those of sim/nvml/abi.py. */
#ifndef GPUPLUGIN_SIM_NVML_CLIENT_H
#define GPUPLUGIN_SIM_NVML_CLIENT_H

#include <stdint.h>

#define EXPORT __attribute__((visibility("default")))

enum kind { NUMBER, TEXT, OUT, INOUT, VERSIONED, OUT_BY, INOUT_BY, COUNT, ARRAY, FILL };

enum code {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    DRIVER_NOT_LOADED = 9,
    GPU_IS_LOST = 15,
    INSUFFICIENT_RESOURCES = 23,
    ARGUMENT_VERSION_MISMATCH = 25,
    UNKNOWN = 999
};

struct argument {
    enum kind kind;
    unsigned by;              /* position of the argument that tells the length */
    uint32_t size;            /* bytes of one element */
    const uint32_t *versions; /* of a VERSIONED argument, ended by 0 */
};

struct function {
    uint16_t number;
    uint8_t on_device; /* about one GPU: the end of the node is its loss */
    uint8_t count;
    const struct argument *arguments;
};

struct text {
    int code;
    const char *text;
};

/* From the generated part. */
extern const uint64_t sim_abi;
extern const struct text sim_texts[];

int sim_call(const struct function *function, const uint64_t *values);
int sim_unsupported(void);

#endif
