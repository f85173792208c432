/* The hand-written part of the library: carries a call to the simulated node's process and its
   answer back. All that it keeps is how often it was initialised and its connections.

   Request:  u32 length of the rest, u16 function, u16 arguments, and for each argument u64 value
             (for a pointer: how many bytes it has room for; all ones for NULL), then what is read.
   Answer:   u32 length of the rest, i32 code, and for each pointer that can be written to u32
             length and as many bytes (0: left as it was).
   The first request on a connection has function 0xffff and says u64 ABI, u64 session (0: a new
   one); its answer ends with the u64 session. */
#define _GNU_SOURCE
#include "client.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define MOST_ARGUMENTS 8
#define MOST_CONNECTIONS 256
#define MOST_IDLE 16
#define MOST_BYTES (1u << 20)
#define MOST_TEXT 4096
#define MOST_FILLED 64
#define NO_ROOM UINT64_MAX
#define HELLO 0xffff
#define NODE_GONE (-1)

struct slot {
    bool used;
    bool busy;
    int fd;
};

static struct {
    pthread_mutex_t lock;
    unsigned initialised;
    unsigned generation; /* connections of an older one are not used again */
    bool gone;           /* the node's process ended */
    uint64_t session;
    char path[sizeof(((struct sockaddr_un *)0)->sun_path)];
    struct slot slots[MOST_CONNECTIONS];
} state = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct connection {
    unsigned slot;
    unsigned generation;
    int fd;
};

/* A message as it grows; small ones stay on the stack. */
struct buffer {
    unsigned char *data;
    size_t used;
    size_t room;
    unsigned char small[2048];
};

static void buffer_init(struct buffer *buffer)
{
    buffer->data = buffer->small;
    buffer->used = 0;
    buffer->room = sizeof buffer->small;
}

static void buffer_free(struct buffer *buffer)
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

static bool put(struct buffer *buffer, const void *data, size_t size)
{
    unsigned char *place = buffer_more(buffer, size);
    if (place == NULL)
        return false;
    memcpy(place, data, size);
    return true;
}

static bool start_request(struct buffer *buffer, uint16_t function, uint16_t arguments)
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
static bool exchange(int fd, struct buffer *buffer)
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

static int answer_code(const struct buffer *buffer)
{
    int32_t code;
    memcpy(&code, buffer->data, sizeof code);
    return code;
}

/* A connection to the node; NODE_GONE, or the code of another failure. */
static int connect_to(const char *path, int *fd)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, path);
    *fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (*fd < 0)
        return INSUFFICIENT_RESOURCES;
    int failed;
    do
        failed = connect(*fd, (struct sockaddr *)&address, sizeof address);
    while (failed && errno == EINTR);
    if (failed && errno != EISCONN) {
        close(*fd);
        return NODE_GONE;
    }
    return SUCCESS;
}

/* Introduces this process; `session` is 0 for a new one, and set. */
static int hello(int fd, uint64_t *session)
{
    struct buffer buffer;
    buffer_init(&buffer);
    int code = NODE_GONE;
    if (start_request(&buffer, HELLO, 0) && put(&buffer, &sim_abi, sizeof sim_abi) &&
        put(&buffer, session, sizeof *session) && exchange(fd, &buffer)) {
        code = answer_code(&buffer);
        if (code == SUCCESS && buffer.used >= sizeof(int32_t) + sizeof *session)
            memcpy(session, buffer.data + sizeof(int32_t), sizeof *session);
    }
    buffer_free(&buffer);
    return code;
}

static int open_connection(const char *path, uint64_t *session, int *fd)
{
    int code = connect_to(path, fd);
    if (code != SUCCESS)
        return code;
    code = hello(*fd, session);
    if (code != SUCCESS)
        close(*fd);
    return code;
}

/* The lock is held by those who call the functions from here on, up to acquire(). */

static void free_slot(unsigned number)
{
    if (state.slots[number].fd >= 0)
        close(state.slots[number].fd);
    state.slots[number] = (struct slot){.fd = -1};
}

static void forget_idle(void)
{
    for (unsigned number = 0; number < MOST_CONNECTIONS; number++)
        if (state.slots[number].used && !state.slots[number].busy)
            free_slot(number);
    state.generation++;
}

static unsigned count_idle(void)
{
    unsigned idle = 0;
    for (unsigned number = 0; number < MOST_CONNECTIONS; number++)
        idle += state.slots[number].used && !state.slots[number].busy;
    return idle;
}

static bool take_slot(bool used, unsigned *found)
{
    for (unsigned number = 0; number < MOST_CONNECTIONS; number++) {
        struct slot *slot = &state.slots[number];
        if (slot->used == used && !slot->busy) {
            if (!used)
                slot->fd = -1;
            slot->used = slot->busy = true;
            *found = number;
            return true;
        }
    }
    return false;
}

/* A connection for one call: an idle one, or a new one. */
static int acquire(struct connection *connection)
{
    pthread_mutex_lock(&state.lock);
    int code = !state.initialised ? UNINITIALIZED : state.gone ? NODE_GONE : SUCCESS;
    bool idle = code == SUCCESS && take_slot(true, &connection->slot);
    if (code == SUCCESS && !idle && !take_slot(false, &connection->slot))
        code = INSUFFICIENT_RESOURCES;
    connection->generation = state.generation;
    connection->fd = idle ? state.slots[connection->slot].fd : -1;
    uint64_t session = state.session;
    char path[sizeof state.path];
    memcpy(path, state.path, sizeof path);
    pthread_mutex_unlock(&state.lock);
    if (code != SUCCESS || idle)
        return code;

    code = open_connection(path, &session, &connection->fd);
    pthread_mutex_lock(&state.lock);
    if (code == SUCCESS) {
        state.slots[connection->slot].fd = connection->fd;
        if (connection->generation == state.generation)
            state.session = session;
    } else {
        free_slot(connection->slot);
        if (code == NODE_GONE && connection->generation == state.generation)
            state.gone = true;
    }
    pthread_mutex_unlock(&state.lock);
    return code;
}

static void release(const struct connection *connection, bool broken)
{
    pthread_mutex_lock(&state.lock);
    bool current = connection->generation == state.generation;
    if (broken && current)
        state.gone = true;
    if (broken || !current || count_idle() >= MOST_IDLE)
        free_slot(connection->slot);
    else
        state.slots[connection->slot].busy = false;
    pthread_mutex_unlock(&state.lock);
}

static bool known_version(const struct argument *argument, uint32_t version)
{
    for (const uint32_t *known = argument->versions; *known; known++)
        if (*known == version)
            return true;
    return false;
}

static uint64_t limited(uint64_t count, uint32_t size)
{
    uint64_t most = MOST_BYTES / size;
    return (count < most ? count : most) * size;
}

/* How many bytes there are behind a pointer argument. */
static uint64_t room_of(const struct argument *argument, const uint64_t *values, unsigned position)
{
    const void *pointer = (const void *)(uintptr_t)values[position];
    if (pointer == NULL)
        return NO_ROOM;
    uint32_t number;
    switch (argument->kind) {
    case TEXT:
        return strnlen(pointer, MOST_TEXT);
    case VERSIONED:
        memcpy(&number, pointer, sizeof number);
        return known_version(argument, number) ? number & 0xffffff : sizeof number;
    case OUT_BY:
    case INOUT_BY:
        return limited(values[argument->by], argument->size);
    case ARRAY:
        if (values[argument->by] == 0)
            return 0;
        memcpy(&number, (const void *)(uintptr_t)values[argument->by], sizeof number);
        return limited(number, argument->size);
    case FILL:
        return limited(MOST_FILLED, argument->size);
    default:
        return argument->size;
    }
}

static bool is_read(enum kind kind)
{
    return kind == TEXT || kind == INOUT || kind == VERSIONED || kind == INOUT_BY || kind == COUNT;
}

static bool marshal(struct buffer *buffer, const struct function *function, const uint64_t *values,
                    uint64_t *rooms)
{
    if (!start_request(buffer, function->number, function->count))
        return false;
    for (unsigned position = 0; position < function->count; position++) {
        const struct argument *argument = &function->arguments[position];
        uint64_t value = values[position];
        if (argument->kind != NUMBER)
            value = rooms[position] = room_of(argument, values, position);
        if (!put(buffer, &value, sizeof value))
            return false;
        if (is_read(argument->kind) && value != NO_ROOM &&
            !put(buffer, (const void *)(uintptr_t)values[position], value))
            return false;
    }
    return true;
}

/* Copies the answer to the caller's pointers; false if it is none for this call. */
static bool unmarshal(const struct buffer *buffer, const struct function *function,
                      const uint64_t *values, const uint64_t *rooms)
{
    size_t at = sizeof(int32_t);
    for (unsigned position = 0; position < function->count; position++) {
        enum kind kind = function->arguments[position].kind;
        uint32_t length;
        if (kind == NUMBER || kind == TEXT || rooms[position] == NO_ROOM)
            continue;
        if (buffer->used - at < sizeof length)
            return false;
        memcpy(&length, buffer->data + at, sizeof length);
        at += sizeof length;
        if (length > rooms[position] || length > buffer->used - at)
            return false;
        memcpy((void *)(uintptr_t)values[position], buffer->data + at, length);
        at += length;
    }
    return at == buffer->used;
}

int sim_call(const struct function *function, const uint64_t *values)
{
    struct connection connection;
    struct buffer buffer;
    uint64_t rooms[MOST_ARGUMENTS];
    int code = acquire(&connection);
    if (code == SUCCESS) {
        buffer_init(&buffer);
        if (!marshal(&buffer, function, values, rooms)) {
            code = INSUFFICIENT_RESOURCES;
            release(&connection, false);
        } else if (!exchange(connection.fd, &buffer)) {
            code = NODE_GONE;
            release(&connection, true);
        } else {
            code = unmarshal(&buffer, function, values, rooms) ? answer_code(&buffer) : UNKNOWN;
            release(&connection, false);
        }
        buffer_free(&buffer);
    }
    if (code == NODE_GONE)
        return function->on_device ? GPU_IS_LOST : DRIVER_NOT_LOADED;
    return code;
}

int sim_unsupported(void)
{
    pthread_mutex_lock(&state.lock);
    int code = state.initialised ? NOT_SUPPORTED : UNINITIALIZED;
    pthread_mutex_unlock(&state.lock);
    return code;
}

/* Counts one more initialisation, if the node is known to be there. */
static bool initialised_again(void)
{
    bool again = state.initialised > 0 && !state.gone;
    state.initialised += again;
    return again;
}

static bool read_path(char *path, size_t room)
{
    const char *given = getenv("GPUPLUGIN_SIM_NVML");
    if (given == NULL || *given == '\0' || strlen(given) >= room)
        return false;
    strcpy(path, given);
    return true;
}

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    pthread_mutex_lock(&state.lock);
    bool again = initialised_again();
    pthread_mutex_unlock(&state.lock);
    if (again)
        return SUCCESS;

    char path[sizeof state.path];
    uint64_t session = 0;
    int fd;
    if (!read_path(path, sizeof path))
        return DRIVER_NOT_LOADED;
    int code = open_connection(path, &session, &fd);
    if (code != SUCCESS)
        return code == NODE_GONE ? DRIVER_NOT_LOADED : code;

    unsigned slot;
    pthread_mutex_lock(&state.lock);
    if (initialised_again()) { /* another thread was faster */
        close(fd);
    } else {
        forget_idle();
        state.gone = false;
        state.session = session;
        state.initialised++;
        memcpy(state.path, path, sizeof path);
        if (take_slot(false, &slot))
            state.slots[slot] = (struct slot){.used = true, .fd = fd};
        else
            close(fd);
    }
    pthread_mutex_unlock(&state.lock);
    return SUCCESS;
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void)
{
    pthread_mutex_lock(&state.lock);
    int code = state.initialised ? SUCCESS : UNINITIALIZED;
    if (state.initialised && --state.initialised == 0)
        forget_idle();
    pthread_mutex_unlock(&state.lock);
    return code;
}

EXPORT const char *nvmlErrorString(int code)
{
    for (const struct text *known = sim_texts; known->text; known++)
        if (known->code == code)
            return known->text;
    return "Unknown error";
}

/* A fork: the child has no part in the connections of its parent and makes its own. */

static void before_fork(void) { pthread_mutex_lock(&state.lock); }

static void after_fork(void) { pthread_mutex_unlock(&state.lock); }

static void in_child(void)
{
    for (unsigned number = 0; number < MOST_CONNECTIONS; number++)
        if (state.slots[number].used)
            free_slot(number);
    state.generation++;
    state.session = 0;
    pthread_mutex_unlock(&state.lock);
}

__attribute__((constructor)) static void watch_forks(void)
{
    pthread_atfork(before_fork, after_fork, in_child);
}
