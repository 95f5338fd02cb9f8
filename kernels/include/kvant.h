/* kvant's native library: one function for each kind of work in a plan. Plain C ABI, no dependency, no global state but
 * the thread pool.
 *
 * Every function is a function from bits to bits: results do not depend on the instruction set or the number of
 * threads (docs/numerics.md defines them). Every function checks its arguments and returns a kvant_status; on anything
 * but KVANT_OK the output's contents are undefined. Buffers are row-major, hold what the arguments say, and must not
 * overlap. Element types are given as kvant_dtype; "activations" are uint8, int8 or int16, outputs uint8 or int16.
 */
#ifndef KVANT_H
#define KVANT_H

#include <stdint.h>

#if defined(__GNUC__)
#define KVANT_API __attribute__((visibility("default")))
#else
#define KVANT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define KVANT_ABI_VERSION 9

typedef enum kvant_status {
  KVANT_OK = 0,
  KVANT_NULL_POINTER = 1,
  KVANT_BAD_ARGUMENT = 2, /* a negative size, an unknown dtype, bounds outside the type's range */
  KVANT_OVERFLOW = 3,     /* a product of sizes does not fit 63 bits */
  KVANT_NO_MEMORY = 4,
  KVANT_BAD_INDEX = 5, /* kvant_gather, kvant_pick: an index is out of range */
  KVANT_NOT_FINITE = 6 /* kvant_quantize: NaN or infinity */
} kvant_status;

typedef enum kvant_dtype { KVANT_UINT8 = 0, KVANT_INT8 = 1, KVANT_INT16 = 2 } kvant_dtype;

typedef enum kvant_function {
  KVANT_ADD = 0,
  KVANT_SUB = 1,
  KVANT_MUL = 2,
  KVANT_DIV = 3,
  KVANT_MIN = 4,
  KVANT_MAX = 5,
  KVANT_MOD = 6 /* kvant_int_binary only */
} kvant_function;

/* What is written: min(max(rne(v) + zero_point, low), high) as dtype. */
typedef struct kvant_target {
  int32_t dtype;
  int32_t zero_point;
  int32_t low;
  int32_t high;
} kvant_target;

/* An activation that is read. */
typedef struct kvant_source {
  const void *data;
  int32_t dtype;
  int32_t zero_point;
} kvant_source;

/* Size and version. */
KVANT_API int32_t kvant_abi_version(void);
KVANT_API const char *kvant_isa(void); /* "avx512vnni", "avxvnni", "avx2", "neondot", "portable"; KVANT_ISA lowers it */
KVANT_API int32_t kvant_num_threads(void);
KVANT_API int32_t kvant_set_num_threads(int32_t count); /* 1 to 1024; 0 is as many as the process may use */
/* Calls of this thread use no other thread if `alone` is not 0; for it kvant_num_threads() is 1 then. */
KVANT_API int32_t kvant_stay_on_thread(int32_t alone);

/* Element-wise work. */
/* x is (outer, channels, inner), y is (outer, inner, channels). If `refuses` is not 0, NaN and infinity are an error;
   otherwise infinity is the bound next to it and NaN becomes any integer. */
KVANT_API int32_t kvant_quantize(int64_t outer, int64_t channels, int64_t inner, const float *x, float scale,
                                 int32_t refuses, const kvant_target *target, void *y);
KVANT_API int32_t kvant_dequantize(int64_t count, const kvant_source *x, float scale, float *y);
KVANT_API int32_t kvant_rescale(int64_t count, const kvant_source *x, float multiplier, const kvant_target *target,
                                void *y);
/* y[i, c, j] = table[c, x[i, c, j] - lowest value of x's dtype]; element_size is that of table and y: 1, 2, 4 or 8. */
KVANT_API int32_t kvant_table(int64_t outer, int64_t channels, int64_t inner, const kvant_source *x, const void *table,
                              int64_t element_size, void *y);

/* rank axes; strides in elements, 0 where an operand is broadcast. */
KVANT_API int32_t kvant_binary(int32_t function, int64_t rank, const int64_t *shape, const kvant_source *a,
                               const int64_t *strides_a, float multiplier_a, const kvant_source *b,
                               const int64_t *strides_b, float multiplier_b, const kvant_target *target, void *y);

/* Movement: elements of element_size 1, 2, 4 or 8 bytes. */
KVANT_API int32_t kvant_copy(int64_t rank, const int64_t *shape, const int64_t *strides, int64_t offset,
                             int64_t element_size, const void *x, void *y);
/* Rows of sizes[i] elements, strides[i] apart, side by side in rows of y, y_stride apart. A null x[i] lies there already. */
KVANT_API int32_t kvant_concat(int64_t outer, int64_t count, const int64_t *sizes, int64_t element_size,
                               const void *const *x, const int64_t *strides, void *y, int64_t y_stride);
/* y[i, j, ...] = x[tables[0][i], tables[1][j], ...], or *fill where a table holds -1. */
KVANT_API int32_t kvant_index(int64_t rank, const int64_t *shape, const int64_t *counts, const int64_t *const *tables,
                              int64_t element_size, const void *x, const void *fill, void *y);
/* On KVANT_BAD_INDEX *bad_index is the position of the first one. */
KVANT_API int32_t kvant_gather(int64_t outer, int64_t size, int64_t inner, int64_t element_size, const void *x,
                               int64_t count, const int64_t *indices, void *y, int64_t *bad_index);

/* y[i, j, ...] = x[i * strides_x[0] + j * strides_x[1] + ... + step * index], where the index is that at
   i * strides_indices[0] + ... of `count` ones, and below `size`. On KVANT_BAD_INDEX as above. */
KVANT_API int32_t kvant_pick(int64_t rank, const int64_t *shape, const int64_t *strides_x,
                             const int64_t *strides_indices, int64_t size, int64_t step, int64_t element_size,
                             const void *x, int64_t count, const int64_t *indices, void *y, int64_t *bad_index);

/* Integers, modulo 2^64, as kvant_binary; KVANT_DIV rounds down, KVANT_MOD has the sign of b, by 0 both give 0. */
KVANT_API int32_t kvant_int_binary(int32_t function, int64_t rank, const int64_t *shape, const int64_t *a,
                                   const int64_t *strides_a, const int64_t *b, const int64_t *strides_b, int64_t *y);

/* Images are (outer, height, width, inner). Window i of an axis covers start[i], start[i] + step, ... below stop[i]. */
typedef struct kvant_windows {
  int64_t count;
  const int64_t *start;
  const int64_t *stop;
  int64_t step;
} kvant_windows;

KVANT_API int32_t kvant_max_pool(int64_t outer, int64_t height, int64_t width, int64_t inner,
                                 const kvant_windows *rows, const kvant_windows *columns, const kvant_source *x,
                                 void *y);
/* multipliers: one for each output pixel (rows->count * columns->count). */
KVANT_API int32_t kvant_mean_pool(int64_t outer, int64_t height, int64_t width, int64_t inner,
                                  const kvant_windows *rows, const kvant_windows *columns, const kvant_source *x,
                                  const float *multipliers, const kvant_target *target, void *y);

/* Interpolation along one axis: x[lower] * (one - weight) + x[upper] * weight. one is at most 2048. */
typedef struct kvant_taps {
  int64_t count;
  const int64_t *lower;
  const int64_t *upper;
  const int64_t *weight;
  int64_t one;
} kvant_taps;

KVANT_API int32_t kvant_resize(int64_t outer, int64_t height, int64_t width, int64_t inner, const kvant_taps *rows,
                               const kvant_taps *columns, const kvant_source *x, float multiplier,
                               const kvant_target *target, void *y);

/* The nearest float, ties to even. */
KVANT_API int32_t kvant_real(int64_t count, const int64_t *x, float *y);

typedef enum kvant_padding { KVANT_ZEROS = 0, KVANT_BORDER = 1, KVANT_REFLECTION = 2 } kvant_padding;

/* Images (batch, size[0], size[1], channels) at `points` places each. A place lies q - zero_point times `scale` from the
 * middle, in halves of the image; with align_corners of the distance of the outermost pixels' centres. */
typedef struct kvant_sampling {
  int64_t batch;
  int64_t size[2];
  int64_t channels;
  int64_t points;
  double scale;
  int32_t align_corners;
  int32_t padding;
  int64_t first;  /* pixel that counts, from the one at or before the place */
  int64_t taps;   /* pixels that count along an axis: 1 to 4 */
  int64_t phases; /* places between two pixels that are told apart: a power of two, 2048 at most */
  const int32_t *weights; /* (phases, taps); of a phase they are 2^20 at most, added up without their signs */
} kvant_sampling;

/* grid: (batch, points, column and row). */
KVANT_API int32_t kvant_grid_sample(const kvant_sampling *sampling, const kvant_source *x, const kvant_source *grid,
                                    float multiplier, const kvant_target *target, void *y);

/* Along the middle of (outer, size, inner). */
KVANT_API int32_t kvant_sum(int64_t outer, int64_t size, int64_t inner, const kvant_source *x, float multiplier,
                            const kvant_target *target, void *y);
KVANT_API int32_t kvant_extreme(int32_t function, int64_t outer, int64_t size, int64_t inner, const kvant_source *x,
                                void *y);
KVANT_API int32_t kvant_arg_max(int64_t outer, int64_t size, int64_t inner, const kvant_source *x, int64_t *y);
/* Running sums, and positions of the `wanted` largest (or smallest) elements; of equal ones the first comes first. */
KVANT_API int32_t kvant_cum_sum(int64_t outer, int64_t size, int64_t inner, const kvant_source *x, float multiplier,
                                const kvant_target *target, void *y);
KVANT_API int32_t kvant_int_cum_sum(int64_t outer, int64_t size, int64_t inner, const int64_t *x, int64_t *y);
KVANT_API int32_t kvant_int_arg_max(int64_t outer, int64_t size, int64_t inner, const int64_t *x, int64_t *y);
KVANT_API int32_t kvant_top_k(int64_t outer, int64_t size, int64_t inner, int64_t wanted, int32_t largest,
                              const kvant_source *x, int64_t *y);
/* exponentials: one for each distance from the maximum, 256 or 65536 entries, none negative, the first positive. */
KVANT_API int32_t kvant_softmax(int64_t outer, int64_t size, int64_t inner, const kvant_source *x,
                                const int32_t *exponentials, float inverse_scale, const kvant_target *target, void *y);

/* Layer and group norm of (rows, size): element j of row i takes gamma[(i % groups) * (size / inner) + j / inner]. */
typedef struct kvant_norm {
  int64_t rows;
  int64_t groups;
  int64_t size;
  int64_t inner;
  double scale;
  double eps;
  float output_scale;
} kvant_norm;

KVANT_API int32_t kvant_normalize(const kvant_norm *norm, const kvant_source *x, const float *gamma, const float *beta,
                                  const kvant_target *target, void *y);

/* Weighted sums. terms: that many products surely sum up within int32. wide: the whole sum may leave int32. */
typedef struct kvant_sums {
  int64_t terms;
  int32_t wide;
} kvant_sums;

/* A convolution, apart from what it is applied to. Input and output are (batch, height, width, channels). A linear
 * layer is a convolution of one row of pixels with a 1 x 1 kernel. In pairs, [0] is the vertical axis. */
typedef struct kvant_conv_layer {
  int64_t outputs;
  int64_t channels; /* of the input, all groups together */
  int64_t groups;   /* of consecutive channels and outputs */
  int64_t kernel[2];
  int64_t strides[2];
  int64_t dilations[2];
  int32_t transposed;
  int32_t dtype;      /* of the input */
  int32_t zero_point; /* of the input; padding has this value */
  const int16_t *values;    /* (outputs, channels / groups, kernel[0], kernel[1]): int8 or int16 weights, none -32768 */
  const int64_t *bias;      /* (outputs) */
  const float *multipliers; /* (outputs) */
  kvant_sums sums;
} kvant_conv_layer;

/* What a layer is applied to. */
typedef struct kvant_conv_shape {
  int64_t batch;
  int64_t size[2];
  int64_t output_size[2];
  int64_t pads[2];  /* before the first pixel; what lies behind the last one follows from output_size */
  int64_t x_stride; /* elements from one pixel of the input to the next: its channels, or more */
  int64_t y_stride; /* the same for the output */
} kvant_conv_shape;

/* A layer laid out for this machine. */
typedef struct kvant_weights kvant_weights;

/* How to compute a layer: always the same bits, but some are faster and need more memory. */
typedef enum kvant_method {
  KVANT_DIRECT = 0,
  KVANT_WINOGRAD = 1, /* 3 x 3 kernels */
  KVANT_TRANSFORM = 2, /* large kernels, by a number-theoretic transform */
  KVANT_XNOR = 3, /* weights of -1 and 1, by bit operations; only for inputs that hold 0, 1 and 2 around zero point 1 */
  /* As above, but weights are kept in the file's size and transformed in each run, into memory that layers share. */
  KVANT_WINOGRAD_LATE = 4,
  KVANT_TRANSFORM_LATE = 5
} kvant_method;

/* Prepare a layer once, by `method` where it is exact for these weights, else directly. Everything that `layer` points
 * to is copied. */
KVANT_API int32_t kvant_pack_conv(const kvant_conv_layer *layer, int32_t method, kvant_weights **packed);
/* Memory that the layer's weights will take, about; -1 if the method does not fit the layer. Pointers are not read. */
KVANT_API int32_t kvant_conv_bytes(const kvant_conv_layer *layer, int32_t method, int64_t *bytes);
/* Memory that runs of the layer need for weights, on all threads together: 0 unless the method is a late one. Layers
 * that run one after the other share it. Pointers are not read. */
KVANT_API int32_t kvant_conv_room(const kvant_conv_layer *layer, int32_t method, int64_t *bytes);
KVANT_API void kvant_free_weights(kvant_weights *packed);
KVANT_API const char *kvant_algorithm(const kvant_weights *packed); /* how it is computed: "direct", ... */
KVANT_API int64_t kvant_weights_bytes(const kvant_weights *packed); /* memory that the packed layer takes */
/* A tensor that is added to a convolution's results: what is written is (q - zero point of q) * multiplier +
 * (data - zero_point) * added_multiplier as `target`. data lies like y, without gaps, and both targets and data have one
 * dtype. */
typedef struct kvant_addend {
  const void *data;
  int32_t zero_point;
  float multiplier;
  float added_multiplier;
  kvant_target target;
} kvant_addend;

/* addend: null, or what is added to the results. */
KVANT_API int32_t kvant_conv(const kvant_conv_shape *shape, const kvant_weights *weights, const void *x,
                             const kvant_target *target, const kvant_addend *addend, void *y);
/* A depthwise convolution, written as `between`, and a 1 x 1 convolution of stride 1 of its results, row after row: what
 * lies between them stays in the cache. `shape` is that of the first one, but for y_stride. */
KVANT_API int32_t kvant_conv_pair(const kvant_conv_shape *shape, const kvant_weights *depthwise, const void *x,
                                  const kvant_target *between, const kvant_weights *pointwise,
                                  const kvant_target *target, const kvant_addend *addend, void *y);
/* count products of (m, k) and (k, n) matrices; index_a and index_b name the matrices of each. */
KVANT_API int32_t kvant_matmul(int64_t m, int64_t k, int64_t n, int64_t count, const int64_t *index_a,
                               const int64_t *index_b, const kvant_source *a, const kvant_source *b, float multiplier,
                               const kvant_sums *sums, const kvant_target *target, void *y);

/* A convolution of float32: sums in float64, over kernel rows, columns and channels in this order, then the bias, then
 * low and high, which are finite. Padding counts for nothing. Strides of pixels in `shape` are not read. */
typedef struct kvant_float_layer {
  int64_t outputs;
  int64_t channels;
  int64_t groups;
  int64_t kernel[2];
  int64_t strides[2];
  int64_t dilations[2];
  const float *values; /* (groups, kernel[0], kernel[1], channels / groups, outputs / groups) */
  const float *bias;   /* (outputs) */
  float low;
  float high;
} kvant_float_layer;

KVANT_API int32_t kvant_float_conv(const kvant_float_layer *layer, const kvant_conv_shape *shape, const float *x,
                                   float *y);

/* Rows of x (rows, depth), each rounded to 8 bits by a scale and a zero point of its own, times integer weights. */
typedef struct kvant_dynamic_layer {
  int64_t outputs;
  int64_t depth;
  int64_t terms;         /* that many products surely sum up within int32 */
  const int16_t *values; /* (outputs, depth) */
  const float *scales;   /* (outputs) */
  const float *bias;     /* (outputs) */
  float low;
  float high;
} kvant_dynamic_layer;

KVANT_API int32_t kvant_dynamic_linear(const kvant_dynamic_layer *layer, int64_t rows, const float *x, float *y);

/* Maps that show where things are, and fields that show how they belong together. */

/* Interpolation along an axis: result i is the sum of weights[i * terms + k] * x[first[i] + k] over all k < terms. */
typedef struct kvant_filter {
  int64_t count;
  int64_t terms;
  const int64_t *first;
  const float *weights;
} kvant_filter;

/* Maps of one picture, (channels, height, width), and what interpolates each of them. */
typedef struct kvant_maps {
  const float *data;
  int64_t height;
  int64_t width;
  kvant_filter rows;
  kvant_filter columns;
} kvant_maps;

/* Result (j, i), column and row, of interpolation lies at x = (j + 0.5) * steps[0] - 0.5, y = (i + 0.5) * steps[1] - 0.5. */
typedef struct kvant_peak {
  float x;
  float y;
  float height;
} kvant_peak;

/* Local maxima above `threshold` of the mean of `count` interpolated maps, at the tops of parabolas through their
   neighbours. Of a plateau the last is one. Those of channel c are peaks[bounds[c]] to peaks[bounds[c + 1] - 1], the
   highest first, and `most` at most; `peaks` has room for channels * most. */
KVANT_API int32_t kvant_peaks(int64_t count, const kvant_maps *maps, int64_t channels, float threshold, int64_t most,
                              const double steps[2], kvant_peak *peaks, int64_t *bounds);

/* Fields of one picture, (channels, height, width). Point p of a line lies at p * scale + shift in them, x and y. */
typedef struct kvant_fields {
  const float *data;
  int64_t height;
  int64_t width;
  float scale[2];
  float shift[2];
} kvant_fields;

/* Lines of a kind: from peaks of one channel to those of another, with the channels of the field's x and y. */
typedef struct kvant_kind {
  int64_t start;
  int64_t end;
  int64_t x;
  int64_t y;
} kvant_kind;

typedef struct kvant_line_rules {
  int64_t points;    /* of a line, at equal distances, both ends included */
  float threshold;   /* what a field does not exceed at a point is a failure */
  int64_t failures;  /* lines with more of them are left out */
  float long_line;   /* longer ones lose of their score: 1 - long_line / length */
  float peak_weight; /* of the heights of a line's ends in its strength */
} kvant_line_rules;

typedef struct kvant_line {
  int32_t kind;
  int32_t start; /* numbers of peaks */
  int32_t end;
  float score;    /* how far the fields point from start to end, on average */
  float strength; /* score + peak_weight * (height of start + height of end) */
} kvant_line;

/* Lines of positive score along the mean of `count` fields, the strongest first; equal ones in the order of kinds, starts
   and ends. `lines` has room for all pairs of peaks, `*found` is how many there are. */
KVANT_API int32_t kvant_lines(int64_t count, const kvant_fields *fields, int64_t field_channels, int64_t channels,
                              const kvant_peak *peaks, const int64_t *bounds, int64_t kinds, const kvant_kind *kind,
                              const kvant_line_rules *rules, kvant_line *lines, int64_t *found);

/* Things made of peaks: a part is a channel of the maps, a limb a kind of lines. Limbs from number `founding` on join what
   is there, and begin nothing. */
typedef struct kvant_skeleton {
  int64_t parts;
  int64_t limbs; /* 64 at most */
  int64_t founding;
  const kvant_kind *limb;
} kvant_skeleton;

typedef struct kvant_people_rules {
  float threshold; /* see kvant_peaks */
  int64_t most;
  kvant_line_rules lines;
  int64_t parts;     /* people of fewer parts are left out, */
  double confidence; /* and those of less confidence: half of the heights of their peaks and scores of their limbs, a part */
} kvant_people_rules;

/* Where peaks lie in the picture: p at (p + 0.5) / scale - 0.5, moved into the picture where it is outside; x and y. */
typedef struct kvant_picture {
  double steps[2]; /* see kvant_peaks */
  float scale[2];
  float size[2];
} kvant_picture;

/* People, best first. The strongest lines are joined first; a peak serves one line of a kind, and one person. A score is the
   confidence times the root of the share of parts that were found. keypoints[i][part] is x, y and height, zeros for a part
   that was not found; there is room for `room` people, and *found says how many there are: more are left out. */
KVANT_API int32_t kvant_people(int64_t count, const kvant_maps *maps, const kvant_fields *fields, int64_t field_channels,
                               const kvant_skeleton *skeleton, const kvant_people_rules *rules,
                               const kvant_picture *picture, int64_t room, float *keypoints, double *scores,
                               int64_t *found);

/* A picture at another size: pixels of 1 or 3 channels of uint8, rows of them `x_pitch` and `y_pitch` bytes apart. Columns
   are summed first, then rows, in float32 and in the order of cells; results are rounded half to even. */
KVANT_API int32_t kvant_resample(int64_t height, int64_t width, int64_t channels, const uint8_t *x, int64_t x_pitch,
                                 const kvant_filter *rows, const kvant_filter *columns, uint8_t *y, int64_t y_pitch);

/* A call of one of the functions above but the last four, as part of a plan. */
typedef enum kvant_step {
  KVANT_STEP_QUANTIZE, KVANT_STEP_DEQUANTIZE, KVANT_STEP_RESCALE, KVANT_STEP_TABLE, KVANT_STEP_BINARY,
  KVANT_STEP_COPY, KVANT_STEP_CONCAT, KVANT_STEP_INDEX, KVANT_STEP_GATHER, KVANT_STEP_MAX_POOL,
  KVANT_STEP_MEAN_POOL, KVANT_STEP_RESIZE, KVANT_STEP_SUM, KVANT_STEP_EXTREME, KVANT_STEP_ARG_MAX,
  KVANT_STEP_SOFTMAX, KVANT_STEP_NORMALIZE, KVANT_STEP_CONV, KVANT_STEP_CONV_PAIR, KVANT_STEP_MATMUL,
  KVANT_STEP_FLOAT_CONV, KVANT_STEP_DYNAMIC_LINEAR, KVANT_STEP_PICK, KVANT_STEP_TOP_K, KVANT_STEP_CUM_SUM,
  KVANT_STEP_INT_CUM_SUM, KVANT_STEP_INT_BINARY, KVANT_STEP_REAL, KVANT_STEP_GRID_SAMPLE, KVANT_STEP_INT_ARG_MAX
} kvant_step;

#define KVANT_MOST_ARGUMENTS 15

/* arguments: those of the function, in order; an integer as its value, a float by its bits in the low half. */
typedef struct kvant_call {
  uint64_t step;
  uint64_t arguments[KVANT_MOST_ARGUMENTS];
} kvant_call;

/* Run a plan. If a call fails, its status is returned, and *failed is its number. */
KVANT_API int32_t kvant_run(const kvant_call *calls, int64_t count, int64_t *failed);

#ifdef __cplusplus
}
#endif

#endif
