// Winograd loops for x86 with AVX2.
#define KVANT_ISA avx2

#include "winograd_vectors_avx2.h"

#include "winograd_body.h"
