/* What the hand-written parts of the library share. */
#ifndef GPUPLUGIN_SIM_NVML_INTERNAL_H
#define GPUPLUGIN_SIM_NVML_INTERNAL_H

#include "client.h"

#include <stdbool.h>
#include <stddef.h>

#define MOST_BYTES (1u << 20)
#define MOST_READ 1024 /* elements of an array of the caller that are read */
#define NODE_GONE (-1) /* beside the codes: the node's process ended */

/* A message as it grows; small ones stay on the stack. */
struct buffer {
    unsigned char *data;
    size_t used;
    size_t room;
    unsigned char small[2048];
};

void buffer_init(struct buffer *buffer);
void buffer_free(struct buffer *buffer);
bool put(struct buffer *buffer, const void *data, size_t size);

/* stream.c: requests and answers on a connection. */
bool start_request(struct buffer *buffer, uint16_t function, uint16_t arguments);
bool exchange(int fd, struct buffer *buffer);
int answer_code(const struct buffer *buffer);
int new_socket(void);
int introduce(int fd, const char *path, uint64_t *session);

/* pool.c: the connections of this process. */
struct connection {
    unsigned slot;
    unsigned generation;
    int fd;
};

int acquire(struct connection *connection);
void release(const struct connection *connection, bool broken);
bool is_initialised(void);

/* Generated: what gpm.c asks the node. */
int sim_nvmlGpmMetricsGet(uint64_t first, uint64_t second, uint32_t count, void *metrics);

#endif
