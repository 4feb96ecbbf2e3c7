// Compiles a function for several x86-64 levels, one of which is chosen at load time: a plain -O3 loop is slower than
// eager PyTorch, and -march=native would not be portable.
#pragma once

#include <cstdlib>  // defines __GLIBC__, whose loader chooses

#if defined(AMUN_CLONES)  // given by the build
#elif defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__) && defined(__GNUC__) && __GNUC__ >= 12
#define AMUN_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default"), noinline))
#else
#define AMUN_CLONES __attribute__((noinline))
#endif
