// Preloaded by a test: slows rank 1 down once rank 0 has connected to it. Rank 1 waits for a message from rank 0, or for
// a while, and pauses after it creates each thread, one of which reads the message.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int is_slow = 0;

int accept(int listener, struct sockaddr* address, socklen_t* length) {
  int (*own)(int, struct sockaddr*, socklen_t*) = dlsym(RTLD_NEXT, "accept");
  const int peer = own(listener, address, length);
  const char* rank = getenv("RANK");
  if (peer < 0 || rank == NULL || strcmp(rank, "1") != 0) return peer;
  is_slow = 1;
  fprintf(stderr, "rank 1 is slow to connect\n");
  // The first 8 bytes are the rank of the other.
  char bytes[9];
  for (int tenths = 0; tenths < 40; ++tenths) {
    if (recv(peer, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT) == sizeof bytes) break;
    usleep(100000);
  }
  return peer;
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*), void* argument) {
  int (*own)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*) = dlsym(RTLD_NEXT, "pthread_create");
  const int result = own(thread, attributes, start, argument);
  if (is_slow) usleep(20000);
  return result;
}
