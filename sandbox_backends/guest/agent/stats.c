/* What the sandbox uses: the answer to STATS (docs/protocol/agent.md, "CONTROL"). */
#include <ctype.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "agent.h"
#include "util.h"

struct usage {
    pid_t pid, parent;
    uint64_t ticks; /* its own, and of the children that it has reaped */
    uint64_t pages; /* resident, and no file's */
    bool counts;
};

/* The name is the process's own choice: the last parenthesis ends it. */
static bool read_times(const char *pid, struct usage *u) {
    char path[64], text[1024];
    unsigned long long user, kernel;
    long long user_of_children, kernel_of_children;
    int parent;
    snprintf(path, sizeof path, "/proc/%.16s/stat", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return false;
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    const char *rest = strrchr(text, ')');
    if (rest == NULL || sscanf(rest, ") %*c %d %*d %*d %*d %*d %*u %*u %*u %*u %*u %llu %llu %lld %lld", &parent, &user,
                               &kernel, &user_of_children, &kernel_of_children) != 5)
        return false;
    u->pid = atoi(pid);
    u->parent = parent;
    u->ticks = user + kernel + (uint64_t)user_of_children + (uint64_t)kernel_of_children;
    return true;
}

static uint64_t read_pages(const char *pid) {
    char path[64];
    unsigned long long resident = 0, shared = 0;
    snprintf(path, sizeof path, "/proc/%.16s/statm", pid);
    FILE *file = fopen(path, "re");
    if (file == NULL)
        return 0;
    if (fscanf(file, "%*u %llu %llu", &resident, &shared) != 2)
        resident = shared = 0;
    fclose(file);
    return resident > shared ? resident - shared : 0;
}

static struct usage *read_processes(size_t *count) {
    struct usage *all = NULL;
    struct dirent *entry;
    size_t capacity = *count = 0;
    DIR *proc = opendir("/proc");
    while (proc != NULL && (entry = readdir(proc)) != NULL) {
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        if (*count == capacity)
            all = must_realloc(all, (capacity = 2 * capacity + 64) * sizeof *all);
        struct usage *u = &all[*count];
        *u = (struct usage){0};
        if (read_times(entry->d_name, u)) {
            u->pages = read_pages(entry->d_name);
            ++*count;
        }
    }
    if (proc != NULL)
        closedir(proc);
    return all;
}

/* As an init the agent has everybody below it, and a machine's kernel its threads, below process 2. Else it is looked who
 * descends from it. */
static void choose(struct usage *all, size_t count) {
    const pid_t self = getpid();
    for (size_t i = 0; self == 1 && i < count; i++)
        all[i].counts = all[i].pid != 1 && all[i].parent != 0 && all[i].parent != 2;
    for (bool more = self != 1; more;) {
        more = false;
        for (size_t i = 0; i < count; i++)
            for (size_t j = 0; j < count && !all[i].counts; j++)
                if (all[i].parent == self || (all[j].counts && all[j].pid == all[i].parent))
                    more = all[i].counts = true;
    }
}

static uint64_t reaped_ns(void) {
    struct rusage usage;
    getrusage(RUSAGE_CHILDREN, &usage);
    return (uint64_t)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000000 +
           (uint64_t)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * 1000;
}

void stats_add(const struct agent *a, struct payload *p) {
    size_t count, processes = 0;
    struct usage *all = read_processes(&count);
    uint64_t ticks = 0, pages = 0;
    struct statvfs disk;
    choose(all, count);
    for (size_t i = 0; i < count; i++)
        if (all[i].counts) {
            processes++;
            ticks += all[i].ticks;
            pages += all[i].pages;
        }
    free(all);
    payload_number(p, TAG_CPU_NS, reaped_ns() + ticks * (1000000000 / (uint64_t)sysconf(_SC_CLK_TCK)));
    payload_number(p, TAG_MEMORY, pages * (uint64_t)sysconf(_SC_PAGESIZE));
    payload_number(p, TAG_PROCESSES, processes);
    if (a->is_machine && statvfs("/", &disk) == 0) {
        payload_number(p, TAG_DISK_USED, (uint64_t)(disk.f_blocks - disk.f_bfree) * disk.f_frsize);
        payload_number(p, TAG_DISK_SIZE, (uint64_t)disk.f_blocks * disk.f_frsize);
    }
}
