/* Messages between the library and the node's process.

   Request:  u32 length of the rest, u16 function, u16 arguments, and for each argument u64 value
             (for a pointer: how many bytes it has room for; all ones for NULL), then what is read.
   Answer:   u32 length of the rest, i32 code, and for each pointer that can be written to u32
             length and as many bytes (0: left as it was).
   The first request on a connection has function 0xffff and says u64 ABI, u64 session (0: a new
   one), and the visible devices as text; its answer ends with the u64 session. */
#define _GNU_SOURCE
#include "internal.h"
#include "visible.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define HELLO 0xffff

void buffer_init(struct buffer *buffer)
{
    buffer->data = buffer->small;
    buffer->used = 0;
    buffer->room = sizeof buffer->small;
}

void buffer_free(struct buffer *buffer)
{
    if (buffer->data != buffer->small)
        free(buffer->data);
    buffer_init(buffer);
}

/* Room for as many more bytes; NULL if there is no memory. */
static unsigned char *buffer_more(struct buffer *buffer, size_t size)
{
    if (buffer->room - buffer->used < size) {
        size_t room = 2 * (buffer->used + size);
        unsigned char *data = malloc(room);
        if (data == NULL)
            return NULL;
        memcpy(data, buffer->data, buffer->used);
        if (buffer->data != buffer->small)
            free(buffer->data);
        buffer->data = data;
        buffer->room = room;
    }
    unsigned char *place = buffer->data + buffer->used;
    buffer->used += size;
    return place;
}

bool put(struct buffer *buffer, const void *data, size_t size)
{
    unsigned char *place = buffer_more(buffer, size);
    if (place == NULL)
        return false;
    memcpy(place, data, size);
    return true;
}

bool start_request(struct buffer *buffer, uint16_t function, uint16_t arguments)
{
    const uint32_t length = 0;
    return put(buffer, &length, sizeof length) && put(buffer, &function, sizeof function) &&
           put(buffer, &arguments, sizeof arguments);
}

static bool send_all(int fd, const unsigned char *data, size_t size)
{
    while (size > 0) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent <= 0)
            return false;
        data += sent;
        size -= (size_t)sent;
    }
    return true;
}

static bool receive_all(int fd, unsigned char *data, size_t size)
{
    while (size > 0) {
        ssize_t got = recv(fd, data, size, 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        data += got;
        size -= (size_t)got;
    }
    return true;
}

/* Sends the request in the buffer and puts the answer, without its length, in its place. */
bool exchange(int fd, struct buffer *buffer)
{
    uint32_t length = (uint32_t)(buffer->used - sizeof length);
    memcpy(buffer->data, &length, sizeof length);
    if (!send_all(fd, buffer->data, buffer->used))
        return false;
    buffer_free(buffer);
    if (!receive_all(fd, (unsigned char *)&length, sizeof length))
        return false;
    if (length < sizeof(int32_t) || length > 2 * MOST_BYTES)
        return false;
    unsigned char *place = buffer_more(buffer, length);
    return place != NULL && receive_all(fd, place, length);
}

int answer_code(const struct buffer *buffer)
{
    int32_t code;
    memcpy(&code, buffer->data, sizeof code);
    return code;
}

/* Never in the place of a standard stream that is closed: what the program writes there would be
   sent. */
int new_socket(void)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || fd > STDERR_FILENO)
        return fd;
    int higher = fcntl(fd, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
    close(fd);
    return higher;
}

static bool connect_to(int fd, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    int failed;
    do
        failed = connect(fd, (struct sockaddr *)&address, sizeof address);
    while (failed && errno == EINTR);
    return !failed || errno == EISCONN;
}

/* Connects a socket to the node and introduces this process: NODE_GONE, or the code of another
   failure. `session` is 0 for a new one, and set. */
int introduce(int fd, const char *path, uint64_t *session)
{
    struct buffer buffer;
    char visible[MOST_VISIBLE];
    size_t length = visible_devices(visible);
    buffer_init(&buffer);
    int code = NODE_GONE;
    if (connect_to(fd, path) && start_request(&buffer, HELLO, 0) &&
        put(&buffer, &sim_abi, sizeof sim_abi) && put(&buffer, session, sizeof *session) &&
        put(&buffer, visible, length) && exchange(fd, &buffer)) {
        code = answer_code(&buffer);
        if (code == SUCCESS && buffer.used >= sizeof(int32_t) + sizeof *session)
            memcpy(session, buffer.data + sizeof(int32_t), sizeof *session);
    }
    buffer_free(&buffer);
    return code;
}
