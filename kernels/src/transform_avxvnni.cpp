// Number-theoretic transform for x86 with AVX2 and AVX-VNNI.
#define KVANT_ISA avxvnni
#define KVANT_HAS_DOT

#include "transform_vectors_avx2.h"

#include "transform_body.h"
