// SPDX-License-Identifier: GPL-2.0
/* GEM objects of v7.2, and the queues that commands with them wait in. */

#define RINGS_7_2
#include "linux_7_2.c"
#include "rings.c"
