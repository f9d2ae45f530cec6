// Preloaded by `make delays`: randomly pauses a process before and after calls for communication, signals and disk
// access, as if it had lost its processor. This makes races between processes and with signals frequent.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <poll.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

// Sleeps in one of `one_in` calls on average, for up to `milliseconds`, even if signals arrive.
static void stand_still(int one_in, long milliseconds) {
  static __thread unsigned long random = 0;
  const int error = errno;
  struct timespec until;
  clock_gettime(CLOCK_MONOTONIC, &until);
  random = random * 6364136223846793005UL + (unsigned long)until.tv_nsec + (unsigned long)getpid();
  if ((random >> 33) % (unsigned long)one_in == 0) {
    until.tv_nsec += (long)((random >> 20) % (unsigned long)(milliseconds * 1000000));
    if (until.tv_nsec >= 1000000000) {
      until.tv_sec += 1;
      until.tv_nsec -= 1000000000;
    }
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {
    }
  }
  errno = error;
}

#define DELAYED(type, name, parameters, arguments, one_in, milliseconds) \
  type name parameters {                                                 \
    type(*own) parameters = (type(*) parameters)dlsym(RTLD_NEXT, #name); \
    stand_still(one_in, milliseconds);                                   \
    const type result = own arguments;                                   \
    stand_still(one_in, milliseconds);                                   \
    return result;                                                       \
  }

DELAYED(int, kill, (pid_t process, int number), (process, number), 2, 50)
DELAYED(pid_t, fork, (void), (), 2, 50)
DELAYED(pid_t, waitpid, (pid_t process, int* status, int options), (process, status, options), 3, 30)
DELAYED(int, pthread_sigmask, (int how, const sigset_t* set, sigset_t* old), (how, set, old), 3, 30)
DELAYED(int, sigaction, (int number, const struct sigaction* action, struct sigaction* old), (number, action, old), 5, 30)
DELAYED(int, select, (int count, fd_set* in, fd_set* out, fd_set* other, struct timeval* timeout),
        (count, in, out, other, timeout), 3, 30)
DELAYED(int, poll, (struct pollfd* files, nfds_t count, int timeout), (files, count, timeout), 5, 10)
DELAYED(int, connect, (int socket, const struct sockaddr* address, socklen_t length), (socket, address, length), 2, 50)
DELAYED(int, sem_wait, (sem_t* semaphore), (semaphore), 20, 5)
DELAYED(int, rename, (const char* from, const char* to), (from, to), 3, 20)
DELAYED(int, fsync, (int file), (file), 3, 5)
DELAYED(int, close, (int file), (file), 40, 5)
DELAYED(ssize_t, read, (int file, void* bytes, size_t count), (file, bytes, count), 60, 10)
DELAYED(ssize_t, write, (int file, const void* bytes, size_t count), (file, bytes, count), 20, 10)
