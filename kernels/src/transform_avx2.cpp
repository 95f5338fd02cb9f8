// Number-theoretic transform for x86 with AVX2.
#define KVANT_ISA avx2

#include "transform_vectors_avx2.h"

#include "transform_body.h"
