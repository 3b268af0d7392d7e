package leasectrl

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/sharding"
	"k8s.io/apimachinery/pkg/types"
)

// randomRanges returns spans of hashes at the borders of 16 equal parts.
func randomRanges(random *rand.Rand) (r ranges) {
	for part := range uint64(16) {
		if random.IntN(2) == 0 {
			r = append(r, span{part << 60, part<<60 + 1<<60 - 1})
		}
	}
	return r.union(nil)
}

// The operations agree with what they mean for each part, and results are in order and apart.
func TestRanges(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		a, b := randomRanges(random), randomRanges(random)
		results := map[string]ranges{"union": a.union(b), "without": a.without(b), "intersect": a.intersect(b)}
		for hash := uint64(0); ; hash += 1 << 59 {
			want := map[string]bool{
				"union": a.has(hash) || b.has(hash), "without": a.has(hash) && !b.has(hash),
				"intersect": a.has(hash) && b.has(hash),
			}
			for name, r := range results {
				if r.has(hash) != want[name] {
					t.Fatalf("%v %s %v: %v has %x: %v", a, name, b, r, hash, r.has(hash))
				}
			}
			if hash >= math.MaxUint64-1<<59 {
				break
			}
		}
		for name, r := range results {
			for i := range r[min(1, len(r)):] {
				if r[i].last+1 >= r[i+1].first {
					t.Fatalf("%v %s %v: %v", a, name, b, r)
				}
			}
		}
		back, err := parseRanges(a.selector(ByUID))
		if err != nil || !slices.Equal(a, back) {
			t.Fatalf("%v has become %v, %v", a, back, err)
		}
	}
	if _, err := parseRanges("shardRange(object.metadata.uid, '0x0', '0x1234567890abcdef01')"); err == nil {
		t.Error("no error for a bound of more than 64 bits")
	}
}

// A hash alone, at either end of all hashes.
func TestRangesOfOneHash(t *testing.T) {
	for _, hash := range []uint64{0, 1, math.MaxUint64} {
		r := ranges{{hash, hash}}
		if !r.has(hash) || r.has(hash+1) || r.has(hash-1) || len(r.union(r)) != 1 || len(r.without(r)) != 0 {
			t.Errorf("%x: %v", hash, r)
		}
	}
}

// What has more spans than a URL has room for is matched, with more.
func TestSelectorIsShort(t *testing.T) {
	var r ranges
	for i := range uint64(1000) {
		r = append(r, span{i << 50, i<<50 + 1<<49})
	}
	selector := r.selector(ByNamespace)
	wider, err := parseRanges(selector)
	if err != nil || len(wider) != maxSpans || len(r.without(wider)) > 0 || len(selector) > 8000 {
		t.Errorf("%d spans, %d bytes, %v; lost %v", len(wider), len(selector), err, r.without(wider))
	}
}

// The API server's selector has the same objects as the ranges have hashes.
func TestSelectorAgrees(t *testing.T) {
	r := ranges{{0, 1 << 62}, {1 << 63, 1<<63 + 1<<61}}
	var requirements []sharding.ShardRangeRequirement
	for part := range strings.SplitSeq(r.selector(ByUID), " || ") {
		match := bounds.FindStringSubmatch(part)
		requirements = append(requirements, sharding.ShardRangeRequirement{
			Key: ByUID, Start: "0x" + match[1], End: "0x" + match[2],
		})
	}
	selector := sharding.NewSelector(requirements...)
	for i := range 1000 {
		uid := types.UID(fmt.Sprint("uid-", i))
		want, err := selector.Matches(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{UID: uid}})
		if got := r.has(hashOf(string(uid))); got != want || err != nil {
			t.Errorf("%s: %v, the server says %v, %v", uid, got, want, err)
		}
	}
}
