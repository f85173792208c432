/* nvidia-smi for containers with simulated GPUs. The node renders, this prints: it needs no library.

   Request:  u32 length of the rest, then strings that end with a NUL: the visible devices, and the
             arguments.
   Answer:   u32 length of the rest, i32 exit status, u32 milliseconds until the next request (0: it
             was the last), the file to write to with a NUL (empty: standard output), and the text. */
#define _GNU_SOURCE
#include "visible.h"

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define NVML_SOCKET "/usr/local/nvidia/run/nvml.sock"
#define SMI_SOCKET "smi.sock"
#define MOST_REQUEST 65536
#define MOST_ANSWER (4u << 20)
#define DRIVER_NOT_LOADED 9
#define WRONG_USAGE 2

static int failed(const char *what, int status)
{
    printf("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver (%s). Make "
           "sure that the plugin of this simulated node runs.\n",
           what);
    return status;
}

/* The socket beside that of NVML; 0 if there is no room for its name. */
static int find_socket(struct sockaddr_un *address)
{
    const char *nvml = getenv("GPUPLUGIN_SIM_NVML");
    if (nvml == NULL || *nvml == '\0')
        nvml = NVML_SOCKET;
    const char *slash = strrchr(nvml, '/');
    size_t folder = slash ? (size_t)(slash - nvml) + 1 : 0;
    if (folder + sizeof SMI_SOCKET > sizeof address->sun_path)
        return 0;
    address->sun_family = AF_UNIX;
    memcpy(address->sun_path, nvml, folder);
    strcpy(address->sun_path + folder, SMI_SOCKET);
    return 1;
}

static int carry(int fd, unsigned char *data, size_t size, int sending)
{
    while (size > 0) {
        ssize_t done = sending ? send(fd, data, size, MSG_NOSIGNAL) : recv(fd, data, size, 0);
        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return 0;
        data += done;
        size -= (size_t)done;
    }
    return 1;
}

/* The length of the request; 0 if it is too long. */
static size_t make_request(unsigned char *request, int count, char **arguments)
{
    size_t used = sizeof(uint32_t);
    used += visible_devices((char *)request + used) + 1;
    for (int at = 1; at < count; at++) {
        size_t length = strlen(arguments[at]) + 1;
        if (used + length > MOST_REQUEST)
            return 0;
        memcpy(request + used, arguments[at], length);
        used += length;
    }
    uint32_t length = (uint32_t)(used - sizeof length);
    memcpy(request, &length, sizeof length);
    return used;
}

/* Writes the text to the file that is named before it, which is opened once. */
static int32_t print(const char *answer, size_t length, int32_t status)
{
    static FILE *file;
    size_t name = strlen(answer) + 1;
    if (*answer != '\0' && file == NULL && (file = fopen(answer, "w")) == NULL) {
        printf("%s: %s\n", answer, strerror(errno));
        return WRONG_USAGE;
    }
    FILE *output = *answer != '\0' ? file : stdout;
    size_t left = name < length ? length - name : 0;
    if (fwrite(answer + name, 1, left, output) == left && fflush(output) == 0)
        return status;
    if (output == file)
        printf("%s: %s\n", answer, strerror(errno));
    return WRONG_USAGE;
}

struct head {
    uint32_t length;
    int32_t status;
    uint32_t again_ms;
};

/* What is answered after the head, with a NUL more; NULL if there was no answer. The connection is
   closed then: without a standard output it may have been in that one's place. */
static char *ask(const struct sockaddr_un *address, unsigned char *request, size_t size, struct head *head)
{
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return NULL;
    char *text = NULL;
    if (connect(fd, (const struct sockaddr *)address, sizeof *address) == 0 &&
        carry(fd, request, size, 1) && carry(fd, (unsigned char *)head, sizeof *head, 0) &&
        head->length >= 8 && head->length <= MOST_ANSWER)
        text = calloc(1, head->length - 8 + 1);
    if (text != NULL && !carry(fd, (unsigned char *)text, head->length - 8, 0)) {
        free(text);
        text = NULL;
    }
    close(fd);
    return text;
}

int main(int count, char **arguments)
{
    static unsigned char request[MOST_REQUEST + MOST_VISIBLE];
    struct sockaddr_un address = {0};
    size_t size = make_request(request, count, arguments);
    if (size == 0) {
        printf("the arguments are too long\n");
        return WRONG_USAGE;
    }
    if (!find_socket(&address))
        return failed("GPUPLUGIN_SIM_NVML is too long", DRIVER_NOT_LOADED);
    for (;;) {
        struct head head;
        char *text = ask(&address, request, size, &head);
        if (text == NULL)
            return failed(address.sun_path, DRIVER_NOT_LOADED);
        int32_t status = print(text, head.length - 8, head.status);
        free(text);
        if (status != 0 || head.again_ms == 0)
            return status & 0xff;
        struct timespec pause = {head.again_ms / 1000, (long)(head.again_ms % 1000) * 1000000};
        while (nanosleep(&pause, &pause) && errno == EINTR)
            ;
    }
}
