package shards

import (
	"fmt"
	"math/bits"
	"strings"
)

// MaxBuckets is the largest number of buckets of a ring: its table still fits into a Lease.
const MaxBuckets = 65536

// hashKey returns the 64-bit FNV-1a hash of key, as KEP-5866 hashes the field of a shardSelector.
func hashKey(key string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(key) {
		h = (h ^ uint64(key[i])) * 1099511628211
	}
	return h
}

// bucketOf returns which of n buckets a hash belongs to. Each is a contiguous range of the hashes.
func bucketOf(hash uint64, n int) int {
	b, _ := bits.Mul64(hash, uint64(n))
	return int(b)
}

// BucketOf returns which of n buckets key belongs to.
func BucketOf(key string, n int) int { return bucketOf(hashKey(key), n) }

// bucketStart returns the lowest hash of bucket b of n, 0 < b < n: b * 2^64 / n, rounded up.
func bucketStart(b, n int) uint64 {
	start, rest := bits.Div64(uint64(b), 0, uint64(n))
	if rest > 0 {
		start++
	}
	return start
}

// bucketBound returns where bucket b of n starts, and bucket b-1 ends, as a shardSelector writes it.
func bucketBound(b, n int) string {
	switch b {
	case 0:
		return "0x0000000000000000"
	case n:
		return "0x10000000000000000" // 2^64, the exclusive end of all
	}
	return fmt.Sprintf("0x%016x", bucketStart(b, n))
}

// Selector returns the selector (ListOptions.ShardSelector) of the buckets of n for which owned reports
// true. A selector cannot be empty: where none is owned it asks for the objects whose hash is 0, which one
// object in 2^64 has.
func Selector(field string, n int, owned func(bucket int) bool) string {
	var ranges []string
	for b := 0; b < n; b++ {
		if !owned(b) {
			continue
		}
		end := b + 1
		for end < n && owned(end) {
			end++
		}
		ranges = append(ranges, fmt.Sprintf("shardRange(%s, '%s', '%s')", field, bucketBound(b, n),
			bucketBound(end, n)))
		b = end
	}
	if ranges == nil {
		return fmt.Sprintf("shardRange(%s, '%s', '0x0000000000000001')", field, bucketBound(0, n))
	}
	return strings.Join(ranges, " || ")
}
