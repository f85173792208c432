/* Which devices of the node a container was given. */
#ifndef GPUPLUGIN_SIM_NVML_VISIBLE_H
#define GPUPLUGIN_SIM_NVML_VISIBLE_H

#include <stddef.h>

#define MOST_VISIBLE 8192

/* Writes their names, separated by commas, `all` or `void`, and a NUL; returns the length. */
size_t visible_devices(char text[MOST_VISIBLE]);

#endif
