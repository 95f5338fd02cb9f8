// Winograd loops for x86 with AVX2 and AVX-VNNI.
#define KVANT_ISA avxvnni
#define KVANT_HAS_DOT

#include "winograd_vectors_avx2.h"

#include "winograd_body.h"
