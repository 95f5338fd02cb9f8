// People: lines between peaks joined, the strongest first.
#include <algorithm>
#include <cmath>

#include "common.h"

namespace kvant {
namespace {

constexpr int32_t kNone = -1;
constexpr int64_t kMostLimbs = 64;  // as a mask has bits

struct Ranked {
  double score;
  int32_t group;

  bool operator<(const Ranked &other) const {
    return score != other.score ? score > other.score : group < other.group;
  }
};

// What belongs to one person so far: groups of peaks, no two of the same part.
class Groups {
 public:
  Groups(const kvant_skeleton &skeleton, int64_t peaks) : skeleton_(skeleton), peaks_(peaks), count_(0) {}

  bool allocate() {
    used_ = scratch_array<uint64_t>(0, peaks_);
    owner_ = scratch_array<int32_t>(1, peaks_);
    members_ = scratch_array<int32_t>(2, (peaks_ + 1) * skeleton_.parts);
    limbs_ = scratch_array<double>(3, peaks_ + 1);
    if (!used_ || !owner_ || !members_ || !limbs_) return false;
    std::fill(used_, used_ + peaks_, 0);
    std::fill(owner_, owner_ + peaks_, kNone);
    return true;
  }

  void join(const kvant_line &line) {
    const uint64_t bit = uint64_t{1} << line.kind;
    if ((used_[line.start] | used_[line.end]) & bit) return;
    used_[line.start] |= bit;
    used_[line.end] |= bit;
    const int32_t first = owner_[line.start], second = owner_[line.end];
    const kvant_kind &limb = skeleton_.limb[line.kind];
    if (first == kNone && second == kNone) {
      if (line.kind < skeleton_.founding) begin(line, limb);
    } else if (first != kNone && second != kNone) {
      if (first != second && !merge(first, second)) return;
      limbs_[first] += static_cast<double>(line.score);
    } else {
      extend(first != kNone ? first : second, first != kNone ? limb.end : limb.start,
             first != kNone ? line.end : line.start, line.score);
    }
  }

  // Groups that were merged into others have no members.
  int64_t count() const { return count_; }
  const int32_t *members(int64_t group) const { return members_ + group * skeleton_.parts; }
  double limbs(int64_t group) const { return limbs_[group]; }

 private:
  void begin(const kvant_line &line, const kvant_kind &limb) {
    if (limb.start == limb.end) return;
    const int32_t group = static_cast<int32_t>(count_++);
    std::fill(own(group), own(group) + skeleton_.parts, kNone);
    limbs_[group] = 0.0;
    add(group, limb.start, line.start);
    extend(group, limb.end, line.end, line.score);
  }

  void extend(int32_t group, int64_t part, int32_t peak, float score) {
    if (own(group)[part] != kNone) return;
    add(group, part, peak);
    limbs_[group] += static_cast<double>(score);
  }

  bool merge(int32_t first, int32_t second) {
    for (int64_t part = 0; part < skeleton_.parts; ++part) {
      if (own(first)[part] != kNone && own(second)[part] != kNone) return false;
    }
    for (int64_t part = 0; part < skeleton_.parts; ++part) {
      if (own(second)[part] != kNone) add(first, part, own(second)[part]);
      own(second)[part] = kNone;
    }
    limbs_[first] += limbs_[second];
    return true;
  }

  void add(int32_t group, int64_t part, int32_t peak) {
    own(group)[part] = peak;
    owner_[peak] = group;
  }

  int32_t *own(int32_t group) { return members_ + group * skeleton_.parts; }

  const kvant_skeleton &skeleton_;
  int64_t peaks_, count_;
  uint64_t *used_;    // of each peak, the kinds of lines that it serves
  int32_t *owner_;    // of each peak, the group
  int32_t *members_;  // of each group, the peak of each part
  double *limbs_;     // of each group, the sum of its lines' scores
};

float placed(float cell, float scale, float size) {
  const float pixel = (cell + 0.5f) / scale - 0.5f;
  return std::max(0.0f, std::min(pixel, size - 1.0f));
}

// Put the groups that are large and certain enough into order; how many those are.
int64_t rank(const Groups &groups, const kvant_people_rules &rules, int64_t parts, const kvant_peak *peaks, Ranked *ranked) {
  int64_t kept = 0;
  for (int64_t g = 0; g < groups.count(); ++g) {
    const int32_t *members = groups.members(g);
    double sum = groups.limbs(g);
    int64_t there = 0;
    for (int64_t part = 0; part < parts; ++part) {
      if (members[part] == kNone) continue;
      sum += static_cast<double>(peaks[members[part]].height);
      ++there;
    }
    const double confidence = 0.5 * sum / static_cast<double>(there);
    // Complete people come first, but less than in proportion: AP was best with the square root.
    const double score = confidence * std::sqrt(static_cast<double>(there) / static_cast<double>(parts));
    if (there == 0 || there < rules.parts || !(confidence >= rules.confidence)) continue;
    ranked[kept++] = {score, static_cast<int32_t>(g)};
  }
  std::sort(ranked, ranked + kept);
  return kept;
}

void write(const int32_t *members, int64_t parts, const kvant_peak *peaks, const kvant_picture &picture, float *keypoints) {
  for (int64_t part = 0; part < parts; ++part, keypoints += 3) {
    if (members[part] == kNone) {
      std::fill(keypoints, keypoints + 3, 0.0f);
      continue;
    }
    const kvant_peak &peak = peaks[members[part]];
    keypoints[0] = placed(peak.x, picture.scale[0], picture.size[0]);
    keypoints[1] = placed(peak.y, picture.scale[1], picture.size[1]);
    keypoints[2] = peak.height;
  }
}

int64_t pairs(const kvant_skeleton &skeleton, const int64_t *bounds) {
  int64_t total = 0;
  for (int64_t k = 0; k < skeleton.limbs; ++k) {
    const kvant_kind &limb = skeleton.limb[k];
    total += (bounds[limb.start + 1] - bounds[limb.start]) * (bounds[limb.end + 1] - bounds[limb.end]);
  }
  return total;
}

int32_t check(const kvant_skeleton &skeleton, const kvant_people_rules &rules) {
  KVANT_REQUIRE(skeleton.limb, KVANT_NULL_POINTER);
  KVANT_REQUIRE(skeleton.parts >= 1 && skeleton.limbs >= 0 && skeleton.limbs <= kMostLimbs, KVANT_BAD_ARGUMENT);
  // So few that sums of pairs stay far below 2^63.
  KVANT_REQUIRE(skeleton.parts <= INT16_MAX && rules.most >= 0 && rules.most <= INT16_MAX, KVANT_BAD_ARGUMENT);
  for (int64_t k = 0; k < skeleton.limbs; ++k) {
    for (const int64_t part : {skeleton.limb[k].start, skeleton.limb[k].end}) {
      KVANT_REQUIRE(part >= 0 && part < skeleton.parts, KVANT_BAD_ARGUMENT);
    }
  }
  return KVANT_OK;
}

}  // namespace
}  // namespace kvant

using namespace kvant;

extern "C" int32_t kvant_people(int64_t count, const kvant_maps *maps, const kvant_fields *fields, int64_t field_channels,
                                const kvant_skeleton *skeleton, const kvant_people_rules *rules,
                                const kvant_picture *picture, int64_t room, float *keypoints, double *scores,
                                int64_t *found) {
  KVANT_REQUIRE(maps && fields && skeleton && rules && picture && keypoints && scores && found, KVANT_NULL_POINTER);
  KVANT_REQUIRE(room >= 0, KVANT_BAD_ARGUMENT);
  int32_t status = check(*skeleton, *rules);
  KVANT_REQUIRE(status == KVANT_OK, status);
  const int64_t parts = skeleton->parts;
  // Peaks and lines use the other slots.
  int64_t *bounds = call_array<int64_t>(parts + 1 + divide_up(parts * rules->most * sizeof(kvant_peak), 8));
  KVANT_REQUIRE(bounds, KVANT_NO_MEMORY);
  kvant_peak *peaks = reinterpret_cast<kvant_peak *>(bounds + parts + 1);
  status = kvant_peaks(count, maps, parts, rules->threshold, rules->most, picture->steps, peaks, bounds);
  KVANT_REQUIRE(status == KVANT_OK, status);
  kvant_line *lines = scratch_array<kvant_line>(4, std::max<int64_t>(1, pairs(*skeleton, bounds)));
  KVANT_REQUIRE(lines, KVANT_NO_MEMORY);
  int64_t joined = 0;
  status = kvant_lines(count, fields, field_channels, parts, peaks, bounds, skeleton->limbs, skeleton->limb, &rules->lines,
                       lines, &joined);
  KVANT_REQUIRE(status == KVANT_OK, status);
  Groups groups(*skeleton, bounds[parts]);
  KVANT_REQUIRE(groups.allocate(), KVANT_NO_MEMORY);
  for (int64_t i = 0; i < joined; ++i) groups.join(lines[i]);
  Ranked *ranked = scratch_array<Ranked>(4, groups.count() + 1);
  KVANT_REQUIRE(ranked, KVANT_NO_MEMORY);
  *found = std::min(room, rank(groups, *rules, parts, peaks, ranked));
  for (int64_t i = 0; i < *found; ++i) {
    scores[i] = ranked[i].score;
    write(groups.members(ranked[i].group), parts, peaks, *picture, keypoints + i * parts * 3);
  }
  return KVANT_OK;
}
