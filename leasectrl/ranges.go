package leasectrl

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// hashOf returns the hash of a key, as a shardSelector and a ring have it.
func hashOf(key string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(key))
	return h.Sum64()
}

// A span is the hashes from first to last, both included.
type span struct{ first, last uint64 }

// ranges are spans of hashes, in order, with gaps between them.
type ranges []span

var bounds = regexp.MustCompile(`'0x([0-9a-f]+)', *'0x([0-9a-f]+)'`)

// parseRanges returns the ranges of a ring's selector; none for one that matches nothing.
func parseRanges(selector string) (r ranges, err error) {
	for _, match := range bounds.FindAllStringSubmatch(selector, -1) {
		first, err := strconv.ParseUint(match[1], 16, 64)
		end, errEnd := strconv.ParseUint(match[2], 16, 64)
		if match[2] == "10000000000000000" {
			end, errEnd = 0, nil // less one, the last hash
		}
		if err = cmp.Or(err, errEnd); err != nil {
			return nil, fmt.Errorf("shard selector %q: %w", selector, err)
		}
		if first == 0 && end == 1 {
			continue // how a ring says "nothing"
		}
		r = append(r, span{first, end - 1})
	}
	return r.union(nil), nil
}

func (r ranges) has(hash uint64) bool {
	i, found := slices.BinarySearchFunc(r, hash, func(s span, hash uint64) int { return cmp.Compare(s.first, hash) })
	return found || i > 0 && hash <= r[i-1].last
}

// union returns what r or other has.
func (r ranges) union(other ranges) (u ranges) {
	all := slices.Concat(r, other)
	slices.SortFunc(all, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	for _, s := range all {
		if n := len(u); n > 0 && (u[n-1].last == math.MaxUint64 || s.first <= u[n-1].last+1) {
			u[n-1].last = max(u[n-1].last, s.last)
		} else {
			u = append(u, s)
		}
	}
	return u
}

// without returns what r has and other has not.
func (r ranges) without(other ranges) (rest ranges) {
	for _, s := range r {
		whole := true // s has a rest that is not looked at yet
		for _, o := range other {
			if o.last < s.first || o.first > s.last {
				continue
			}
			if o.first > s.first {
				rest = append(rest, span{s.first, o.first - 1})
			}
			if whole = o.last < s.last; !whole {
				break
			}
			s.first = o.last + 1
		}
		if whole {
			rest = append(rest, s)
		}
	}
	return rest
}

// intersect returns what both have.
func (r ranges) intersect(other ranges) ranges { return r.without(r.without(other)) }

// maxSpans is how many ranges a selector has at most: 8 KB of URL have room for some more.
const maxSpans = 64

// selector returns the ranges as a shardSelector about a field. It may match more, where there are too many spans for a
// URL: the smallest gaps are closed.
func (r ranges) selector(field string) string {
	if len(r) == 0 {
		return fmt.Sprintf("shardRange(%s, '0x%016x', '0x%016x')", field, 0, 1) // a selector cannot be empty
	}
	r = slices.Clone(r)
	for len(r) > maxSpans {
		smallest := 1
		for i := range r[1:] {
			if r[i+1].first-r[i].last < r[smallest].first-r[smallest-1].last {
				smallest = i + 1
			}
		}
		r[smallest-1].last = r[smallest].last
		r = slices.Delete(r, smallest, smallest+1)
	}
	parts := make([]string, len(r))
	for i, s := range r {
		end := "10000000000000000"
		if s.last != math.MaxUint64 {
			end = fmt.Sprintf("%016x", s.last+1)
		}
		parts[i] = fmt.Sprintf("shardRange(%s, '0x%016x', '0x%s')", field, s.first, end)
	}
	return strings.Join(parts, " || ")
}
