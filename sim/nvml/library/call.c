/* Carries one call to the node's process, and its answer to the caller's pointers. */
#define _GNU_SOURCE
#include "internal.h"

#include <string.h>

#define MOST_ARGUMENTS 8
#define MOST_TEXT 4096
#define MOST_FILLED 64
#define NO_ROOM UINT64_MAX

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

/* Counts of arrays that are read: a wrong one, such as -1, would read what is not the caller's. */
static bool counts_are_possible(const struct function *function, const uint64_t *values)
{
    for (unsigned position = 0; position < function->count; position++) {
        const struct argument *argument = &function->arguments[position];
        if (argument->kind == INOUT_BY && values[argument->by] > MOST_READ)
            return false;
    }
    return true;
}

int sim_call(const struct function *function, const uint64_t *values)
{
    struct connection connection;
    struct buffer buffer;
    uint64_t rooms[MOST_ARGUMENTS];
    int code = acquire(&connection);
    if (code == SUCCESS) {
        buffer_init(&buffer);
        if (!counts_are_possible(function, values)) {
            code = INVALID_ARGUMENT;
            release(&connection, false);
        } else if (!marshal(&buffer, function, values, rooms)) {
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

int sim_unsupported(void) { return is_initialised() ? NOT_SUPPORTED : UNINITIALIZED; }

EXPORT const char *nvmlErrorString(int code)
{
    for (const struct text *known = sim_texts; known->text; known++)
        if (known->code == code)
            return known->text;
    return "Unknown error";
}
