/* What the library keeps: how often it was initialised, and its connections. A connection is used
   by one call at a time; a call that finds none idle makes another. */
#define _GNU_SOURCE
#include "internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>
#include <unistd.h>

#define IN_CONTAINERS "/usr/local/nvidia/run/nvml.sock"
#define MOST_CONNECTIONS 256
#define MOST_IDLE 16

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

/* A new connection in a slot. The lock is let go while it introduces itself; the socket is in the
   slot before that, so that the child of a fork closes it. */
static int open_slot(const char *path, uint64_t *session, unsigned *number)
{
    if (!take_slot(false, number))
        return INSUFFICIENT_RESOURCES;
    int fd = state.slots[*number].fd = new_socket();
    pthread_mutex_unlock(&state.lock);
    int code = fd < 0 ? INSUFFICIENT_RESOURCES : introduce(fd, path, session);
    pthread_mutex_lock(&state.lock);
    if (code != SUCCESS)
        free_slot(*number);
    return code;
}

/* A new connection of this process's session, or with one to begin: that of the thread that is
   first with it is all threads'. */
static int join_session(struct connection *connection)
{
    char path[sizeof state.path];
    memcpy(path, state.path, sizeof path);
    for (;;) {
        const uint64_t asked = state.session;
        uint64_t session = asked;
        int code = open_slot(path, &session, &connection->slot);
        if (connection->generation != state.generation)
            return code;
        if (code == NODE_GONE)
            state.gone = true;
        if (code != SUCCESS)
            return code;
        if (state.session == asked || state.session == session) {
            state.session = session;
            return SUCCESS;
        }
        free_slot(connection->slot);
    }
}

/* A connection for one call: an idle one, or a new one. */
int acquire(struct connection *connection)
{
    pthread_mutex_lock(&state.lock);
    int code = !state.initialised ? UNINITIALIZED : state.gone ? NODE_GONE : SUCCESS;
    connection->generation = state.generation;
    if (code == SUCCESS && !take_slot(true, &connection->slot))
        code = join_session(connection);
    if (code == SUCCESS)
        connection->fd = state.slots[connection->slot].fd;
    pthread_mutex_unlock(&state.lock);
    return code;
}

void release(const struct connection *connection, bool broken)
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

bool is_initialised(void)
{
    pthread_mutex_lock(&state.lock);
    bool initialised = state.initialised > 0;
    pthread_mutex_unlock(&state.lock);
    return initialised;
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
    if (given == NULL || *given == '\0')
        given = IN_CONTAINERS;
    if (strlen(given) >= room)
        return false;
    strcpy(path, given);
    return true;
}

/* Begins a session with the node. */
static int initialise(void)
{
    char path[sizeof state.path];
    uint64_t session = 0;
    unsigned slot;
    if (!read_path(path, sizeof path))
        return DRIVER_NOT_LOADED;
    int code = open_slot(path, &session, &slot);
    if (code != SUCCESS)
        return code == NODE_GONE ? DRIVER_NOT_LOADED : code;
    if (initialised_again()) { /* another thread was faster */
        free_slot(slot);
        return SUCCESS;
    }
    forget_idle();
    state.slots[slot].busy = false;
    state.gone = false;
    state.session = session;
    state.initialised++;
    memcpy(state.path, path, sizeof path);
    return SUCCESS;
}

EXPORT int nvmlInitWithFlags(unsigned flags)
{
    (void)flags;
    pthread_mutex_lock(&state.lock);
    int code = initialised_again() ? SUCCESS : initialise();
    pthread_mutex_unlock(&state.lock);
    return code;
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

/* The library names no C library, so that one file serves programs of all of them. musl exports the
   first of these; glibc links it in statically, and exports what is behind it. */
#pragma weak pthread_atfork
__attribute__((weak)) int __register_atfork(void (*)(void), void (*)(void), void (*)(void), void *);
__attribute__((weak)) void __cxa_finalize(void *);

static char handle; /* by which glibc knows whose handlers they are */

__attribute__((constructor)) static void watch_forks(void)
{
    if (__register_atfork)
        __register_atfork(before_fork, after_fork, in_child, &handle);
    else if (pthread_atfork)
        pthread_atfork(before_fork, after_fork, in_child);
}

/* The library is unloaded: musl never does that. */
__attribute__((destructor)) static void watch_no_more(void)
{
    if (__register_atfork && __cxa_finalize)
        __cxa_finalize(&handle);
}
