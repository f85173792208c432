/* As NVIDIA's container runtime reads it: from NVIDIA_VISIBLE_DEVICES, or where that is a path or
   `void`, as with CDI, from the names of files in the folder for device names. */
#define _GNU_SOURCE
#include "visible.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER "/var/run/nvidia-container-devices"

static size_t append(char *text, size_t used, const char *name)
{
    size_t length = strlen(name);
    if (used + length + 2 > MOST_VISIBLE)
        return used;
    if (used > 0)
        text[used++] = ',';
    memcpy(text + used, name, length + 1);
    return used + length;
}

static size_t from_folder(char *text)
{
    size_t used = 0;
    DIR *folder = opendir(FOLDER);
    if (folder == NULL)
        return 0;
    for (struct dirent *entry; (entry = readdir(folder)) != NULL;)
        if (entry->d_name[0] != '.' && strcmp(entry->d_name, "imex") != 0)
            used = append(text, used, entry->d_name);
    closedir(folder);
    return used;
}

size_t visible_devices(char text[MOST_VISIBLE])
{
    const char *given = getenv("NVIDIA_VISIBLE_DEVICES");
    size_t used = 0;
    text[0] = '\0';
    if (given == NULL || *given == '\0' || *given == '/' || strcmp(given, "void") == 0)
        used = from_folder(text);
    else
        used = append(text, 0, given);
    return used > 0 ? used : append(text, 0, "void");
}
