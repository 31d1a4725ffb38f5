/* What scripts/bench measures inside one process, always in turns so that both directories see the same machine.
 *
 *   bench hits ONE TWO ROUNDS    the system calls of a SCons hit on every file in ONE/ and TWO/, median ns of each
 *   bench read ONE TWO ROUNDS    reading the files ONE and TWO from beginning to end, median ns of each
 *
 * Prints "ONE-NS TWO-NS".
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <err.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FILES = 4096, BUFFER = 1 << 20 };

static char buffer[BUFFER];

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static uint64_t median(uint64_t *values, size_t count)
{
    qsort(values, count, sizeof *values, ascending);
    return values[count / 2];
}

static void read_all(const char *path)
{
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        err(1, "open %s", path);
    struct stat st;
    if (fstat(file, &st))
        err(1, "fstat %s", path);
    off_t total = 0;
    for (ssize_t size; (size = read(file, buffer, sizeof buffer)) != 0; total += size)
        if (size < 0)
            err(1, "read %s", path);
    if (total != st.st_size)
        errx(1, "%s: read %jd of %jd bytes", path, (intmax_t)total, (intmax_t)st.st_size);
    close(file);
}

static void must(int result, const char *what, const char *path)
{
    if (result)
        err(1, "%s %s", what, path);
}

/* stat x2, lstat, stat x2, open, read, close, stat, listxattr, utimensat, stat: as strace shows it of SCons. */
static uint64_t hit(const char *path)
{
    struct stat st;
    uint64_t start = now();
    must(stat(path, &st), "stat", path);
    must(stat(path, &st), "stat", path);
    must(lstat(path, &st), "lstat", path);
    must(stat(path, &st), "stat", path);
    must(stat(path, &st), "stat", path);
    read_all(path);
    must(stat(path, &st), "stat", path);
    (void)listxattr(path, buffer, sizeof buffer);
    must(utimensat(AT_FDCWD, path, NULL, 0), "utimensat", path);
    must(stat(path, &st), "stat", path);
    return now() - start;
}

static size_t list(const char *directory, char **paths)
{
    size_t count = 0;
    DIR *dir = opendir(directory);
    if (!dir)
        err(1, "opendir %s", directory);
    for (struct dirent *entry; (entry = readdir(dir)) && count < MAX_FILES;)
        if (entry->d_name[0] != '.' && asprintf(&paths[count], "%s/%s", directory, entry->d_name) > 0)
            count++;
    closedir(dir);
    return count;
}

int main(int argc, char **argv)
{
    if (argc != 5)
        errx(2, "usage: bench hits|read ONE TWO ROUNDS");
    size_t rounds = strtoul(argv[4], NULL, 10), done = 0, counts[2] = {1, 1};
    static char *paths[2][MAX_FILES];
    int hits = !strcmp(argv[1], "hits");
    for (int side = 0; side < 2; side++) {
        if (hits)
            counts[side] = list(argv[2 + side], paths[side]);
        else
            paths[side][0] = argv[2 + side];
    }
    size_t files = counts[0] < counts[1] ? counts[0] : counts[1];
    if (!files || !rounds)
        errx(1, "nothing to measure");
    uint64_t *times[2] = {calloc(files * rounds, sizeof(uint64_t)), calloc(files * rounds, sizeof(uint64_t))};
    /* The first round warms both and is not counted. */
    for (size_t round = 0; round <= rounds; round++)
        for (size_t file = 0; file < files; file++, done += round > 0)
            for (int turn = 0; turn < 2; turn++) {
                int side = (int)((file + round + (size_t)turn) % 2);
                uint64_t start = now();
                if (hits)
                    hit(paths[side][file]);
                else
                    read_all(paths[side][file]);
                if (round > 0)
                    times[side][done] = now() - start;
            }
    printf("%ju %ju\n", (uintmax_t)median(times[0], done), (uintmax_t)median(times[1], done));
    return 0;
}
