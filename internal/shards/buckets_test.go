package shards

import (
	"fmt"
	"math"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/sharding"
	"k8s.io/apimachinery/pkg/types"
)

func TestHashKeyIsTheAPIServers(t *testing.T) {
	for _, key := range []string{"", "a", "default/web-0", "3f2c8a1e-55d0-4b8e-9d0e-2f6a7c1b9e44", "ключ",
		strings.Repeat("x", 300)} {
		if got, want := fmt.Sprintf("%016x", hashKey(key)), sharding.HashField(key); got != want {
			t.Errorf("hashKey(%q) = %s, want %s", key, got, want)
		}
	}
}

func TestBucketsAreContiguousRanges(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 10, 64, 1000, 4096, 65535, MaxBuckets} {
		if got := bucketOf(0, n); got != 0 {
			t.Errorf("of %d: hash 0 is in bucket %d", n, got)
		}
		if got := bucketOf(math.MaxUint64, n); got != n-1 {
			t.Errorf("of %d: the last hash is in bucket %d", n, got)
		}
		for b := 1; b < n; b++ {
			start := bucketStart(b, n)
			if bucketOf(start, n) != b || bucketOf(start-1, n) != b-1 {
				t.Fatalf("of %d: bucket %d does not start at %#x", n, b, start)
			}
		}
	}
}

func TestSelector(t *testing.T) {
	const field = "object.metadata.uid"
	for _, c := range []struct {
		name    string
		buckets int
		owned   []int
		want    string
	}{
		{"all", 4, []int{0, 1, 2, 3}, "shardRange(object.metadata.uid, '0x0000000000000000', '0x10000000000000000')"},
		{"the first half", 2, []int{0}, "shardRange(object.metadata.uid, '0x0000000000000000', '0x8000000000000000')"},
		{"the last quarter", 4, []int{3},
			"shardRange(object.metadata.uid, '0xc000000000000000', '0x10000000000000000')"},
		{"two runs", 4, []int{0, 2, 3},
			"shardRange(object.metadata.uid, '0x0000000000000000', '0x4000000000000000') || " +
				"shardRange(object.metadata.uid, '0x8000000000000000', '0x10000000000000000')"},
		{"a bound that is rounded", 3, []int{1},
			"shardRange(object.metadata.uid, '0x5555555555555556', '0xaaaaaaaaaaaaaaab')"},
		{"none", 4, nil, "shardRange(object.metadata.uid, '0x0000000000000000', '0x0000000000000001')"},
	} {
		owned := map[int]bool{}
		for _, b := range c.owned {
			owned[b] = true
		}
		if got := Selector(field, c.buckets, func(b int) bool { return owned[b] }); got != c.want {
			t.Errorf("%s: got  %s\nwant %s", c.name, got, c.want)
		}
	}
}

// TestSelectorAgreesWithBuckets asks the API server's own code which objects a selector matches.
func TestSelectorAgreesWithBuckets(t *testing.T) {
	const n = 13
	owned := func(b int) bool { return b%3 == 0 || b == 7 }
	var ranges []sharding.ShardRangeRequirement
	for part := range strings.SplitSeq(Selector("object.metadata.uid", n, owned), " || ") {
		var r sharding.ShardRangeRequirement
		fields := strings.FieldsFunc(part, func(c rune) bool { return strings.ContainsRune("(), '", c) })
		r.Key, r.Start, r.End = fields[1], fields[2], fields[3]
		ranges = append(ranges, r)
	}
	selector := sharding.NewSelector(ranges...)
	for i := range 2000 {
		uid := fmt.Sprintf("%08x-0000-4000-8000-%012x", i*2654435761, i)
		got, err := selector.Matches(&metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{UID: types.UID(uid)}})
		if err != nil {
			t.Fatal(err)
		}
		if want := owned(bucketOf(hashKey(uid), n)); got != want {
			t.Fatalf("uid %s: the API server says %v, the ring %v", uid, got, want)
		}
	}
}
