/* Stresses wasm/parallel.h natively, under ThreadSanitizer: every step once, on a thread that is wanted, with all that
 * it wrote visible to the caller. Prints how many steps the helpers computed, or stops at the first mistake. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "../wasm/parallel.h"

enum { JOBS = 4000, MAX_STEPS = 300 };

typedef struct {
    int number, threads, pause;
    int computed[MAX_STEPS]; /* by plain writes: ThreadSanitizer sees whether the claims order them */
    int by_thread[MAX_THREADS];
} Counts;

static void pause_for(int microseconds) { nanosleep(&(struct timespec){.tv_nsec = 1000L * microseconds}, NULL); }

static void fail(const char *what, int number) {
    printf("job %d: %s\n", number, what);
    exit(1);
}

static void count(void *context, int first, int end, int thread) {
    Counts *counts = context;
    if (thread < 0 || thread >= counts->threads) fail("a thread that is not wanted", counts->number);
    for (int step = first; step < end; step++) {
        counts->computed[step]++;
        counts->by_thread[thread]++;
        if (counts->pause && step % 7 == 0) pause_for(counts->pause);
    }
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
        int steps = number % 11 ? rand() % MAX_STEPS : number % 3;
        counts->number = number;
        counts->threads = (int)(claims.value >> TOP_SHIFT);
        counts->pause = number % 50 == 0 ? 100 : 0; /* long enough for the others to go to sleep after 200 looks */
        parallel(count, counts, steps);
        int total = 0;
        for (int i = 0; i < MAX_STEPS; i++)
            if (counts->computed[i] != (i < steps)) fail("a step was not computed once", number);
        for (int i = 0; i < MAX_THREADS; i++) total += counts->by_thread[i];
        if (total != steps) fail("a thread's steps at the same time as another's", number);
        helped += total - counts->by_thread[0];
        free(counts); /* nobody may read it any more */
        if (number % 20 == 0) pause_for(200);
    }
    set_threads(1);
    while (helping > 1) pthread_join(helpers[--helping], NULL);
    printf("%ld\n", helped);
    return 0;
}
