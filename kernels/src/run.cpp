// A whole plan in one call: functions of the ABI by number, their arguments in slots of 64 bits.
#include <cstring>
#include <type_traits>
#include <utility>

#include "common.h"

namespace kvant {
namespace {

// The argument that a slot holds: an integer, a float in its low half, or an address.
template <typename T>
T from_slot(uint64_t slot) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(static_cast<uintptr_t>(slot));
  } else if constexpr (std::is_same_v<T, float>) {
    const uint32_t bits = static_cast<uint32_t>(slot);
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
  } else {
    return static_cast<T>(slot);
  }
}

template <typename... Arguments, size_t... I>
int32_t apply(int32_t (*function)(Arguments...), const uint64_t *slots, std::index_sequence<I...>) {
  static_assert(sizeof...(Arguments) <= KVANT_MOST_ARGUMENTS, "a call has no room for that many arguments");
  return function(from_slot<Arguments>(slots[I])...);
}

template <auto kFunction, typename... Arguments>
int32_t call(const uint64_t *slots, int32_t (*)(Arguments...)) {
  return apply<Arguments...>(kFunction, slots, std::index_sequence_for<Arguments...>{});
}

template <auto kFunction>
int32_t invoke(const uint64_t *slots) {
  return call<kFunction>(slots, kFunction);
}

// In the order of kvant_step.
constexpr int32_t (*kSteps[])(const uint64_t *) = {
    invoke<kvant_quantize>, invoke<kvant_dequantize>, invoke<kvant_rescale>,   invoke<kvant_table>,
    invoke<kvant_binary>,   invoke<kvant_copy>,       invoke<kvant_concat>,    invoke<kvant_index>,
    invoke<kvant_gather>,   invoke<kvant_max_pool>,   invoke<kvant_mean_pool>, invoke<kvant_resize>,
    invoke<kvant_sum>,      invoke<kvant_extreme>,    invoke<kvant_arg_max>,   invoke<kvant_softmax>,
    invoke<kvant_normalize>, invoke<kvant_conv>,      invoke<kvant_conv_pair>, invoke<kvant_matmul>,
    invoke<kvant_float_conv>, invoke<kvant_dynamic_linear>, invoke<kvant_pick>,       invoke<kvant_top_k>,
    invoke<kvant_cum_sum>,    invoke<kvant_int_cum_sum>,    invoke<kvant_int_binary>, invoke<kvant_real>,
    invoke<kvant_grid_sample>, invoke<kvant_int_arg_max>,
};

}  // namespace
}  // namespace kvant

extern "C" int32_t kvant_run(const kvant_call *calls, int64_t count, int64_t *failed) {
  KVANT_REQUIRE((calls || count == 0) && failed, KVANT_NULL_POINTER);
  constexpr uint64_t kKnown = sizeof(kvant::kSteps) / sizeof(kvant::kSteps[0]);
  for (*failed = 0; *failed < count; ++*failed) {
    const kvant_call &call = calls[*failed];
    KVANT_REQUIRE(call.step < kKnown, KVANT_BAD_ARGUMENT);
    const int32_t status = kvant::kSteps[call.step](call.arguments);
    KVANT_REQUIRE(status == KVANT_OK, status);
  }
  return KVANT_OK;
}
