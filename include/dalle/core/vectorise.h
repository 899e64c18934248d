// Loops over numbers, compiled for several instruction sets and chosen when the program starts.
#pragma once

/// A function with such a loop, in a file of dalle_vectorise() (cmake/Layer.cmake).
#define DALLE_VECTORISED [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]

/// A part that several of them share: it takes on the instruction set of whom it is inlined into.
#define DALLE_INLINED [[gnu::always_inline]] inline
