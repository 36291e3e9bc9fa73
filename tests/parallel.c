/* Stresses wasm/parallel.h natively, under ThreadSanitizer: every chunk once, on a thread that is wanted, with all that
 * it wrote visible to the caller. Prints how many chunks the helpers computed, or stops at the first mistake. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../wasm/parallel.h"

enum { JOBS = 4000, MAX_CHUNKS = 300 };

typedef struct {
    int number, threads, pause;
    int computed[MAX_CHUNKS]; /* by plain writes: ThreadSanitizer sees whether the claims order them */
    int by_thread[MAX_THREADS];
} Counts;

static void pause_for(int microseconds) { nanosleep(&(struct timespec){.tv_nsec = 1000L * microseconds}, NULL); }

static void fail(const char *what, int number) {
    printf("job %d: %s\n", number, what);
    exit(1);
}

static void count(void *context, int chunk, int thread) {
    Counts *counts = context;
    if (thread < 0 || thread >= counts->threads) fail("a thread that is not wanted", counts->number);
    counts->computed[chunk]++;
    counts->by_thread[thread]++;
    if (counts->pause && chunk % 7 == 0) pause_for(counts->pause);
}

static void *help(void *number) {
    thread_main(*(int *)number);
    return NULL;
}

int main(void) {
    pthread_t helpers[MAX_THREADS];
    int numbers[MAX_THREADS], helping = 1;
    long helped = 0;
    srand(1);
    for (int number = 0; number < JOBS; number++) {
        if (number % 200 == 0) { /* other helpers, now and then fewer than there might be */
            set_threads(1);
            while (helping > 1) pthread_join(helpers[--helping], NULL);
            int threads = set_threads(number / 200 % (MAX_THREADS + 1));
            if (threads < 1 || threads > MAX_THREADS) fail("an impossible number of threads", number);
            for (; helping < threads - (number / 200 % 5 == 4); helping++) {
                numbers[helping] = helping;
                if (pthread_create(&helpers[helping], NULL, help, &numbers[helping])) fail("no thread", number);
            }
            set_threads(threads);
        }
        Counts *counts = calloc(1, sizeof *counts);
        int chunks = number % 11 ? rand() % MAX_CHUNKS : number % 3;
        counts->number = number;
        counts->threads = (int)(claims.value >> TOP_SHIFT);
        counts->pause = number % 50 == 0 ? 100 : 0; /* long enough for the others to go to sleep */
        parallel(count, counts, chunks);
        int total = 0;
        for (int i = 0; i < MAX_CHUNKS; i++)
            if (counts->computed[i] != (i < chunks)) fail("a chunk was not computed once", number);
        for (int i = 0; i < MAX_THREADS; i++) total += counts->by_thread[i];
        if (total != chunks) fail("a thread's chunks at the same time as another's", number);
        helped += total - counts->by_thread[0];
        free(counts); /* nobody may read it any more */
        if (number % 20 == 0) pause_for(200);
    }
    set_threads(1);
    while (helping > 1) pthread_join(helpers[--helping], NULL);
    printf("%ld\n", helped);
    return 0;
}
