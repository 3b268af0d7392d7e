package shards

import (
	"testing"
	"time"
)

// A member that joins waits for the next that leaves, where that came soon after the last that joined.
func TestRollout(t *testing.T) {
	const settle = 3 * time.Second
	type at struct {
		second int
		rows   string // the members, those that leave in capitals
	}
	for _, c := range []struct {
		name   string
		tables []at
		joined int
		want   time.Duration
	}{
		{"nothing is known", nil, 100, settle},
		{"the first table", []at{{100, "ab"}}, 100, settle},
		{"members join", []at{{0, "ab"}, {10, "abc"}, {20, "abcd"}}, 20, settle},
		{"a member leaves", []at{{0, "ab"}, {10, "aB"}}, 20, settle},
		{"one joins, and one leaves", []at{{0, "ab"}, {10, "abc"}, {18, "aBc"}}, 20, 12 * time.Second},
		{"it is gone", []at{{0, "ab"}, {10, "abc"}, {18, "aBc"}, {19, "ac"}, {20, "acd"}}, 20, 12 * time.Second},
		{"steps that are quicker than it settles", []at{{0, "ab"}, {10, "abc"}, {11, "aBc"}}, 12, settle},
		{"steps that take longer than a member waits", []at{{0, "ab"}, {10, "abc"}, {32, "aBc"}}, 33, settle},
		{"the last step counts",
			[]at{{0, "ab"}, {10, "abc"}, {18, "aBc"}, {20, "acd"}, {24, "Acd"}}, 25, 6 * time.Second},
		{"several at a time", []at{{0, "ab"}, {10, "abcd"}, {14, "ABcd"}}, 15, 6 * time.Second},
		{"one that joined before the last left", []at{{0, "ab"}, {10, "abcd"}, {14, "Abcd"}}, 10, 6 * time.Second},
		{"one leaves long after one joined", []at{{0, "ab"}, {10, "abc"}, {60, "aBc"}}, 61, settle},
		{"one is gone at once", []at{{0, "ab"}, {10, "abc"}, {18, "ac"}}, 20, 12 * time.Second},
		{"one is replaced in one table", []at{{0, "ab"}, {10, "ac"}, {18, "cd"}}, 20, 12 * time.Second},
		{"one that has just joined leaves", []at{{0, "ab"}, {10, "abcd"}, {18, "abc"}}, 20, settle},
		{"a rollout of long ago", []at{{0, "ab"}, {10, "abc"}, {18, "aBc"}}, 49, settle},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			r := Rollout{Limit: 30 * time.Second}
			for _, table := range c.tables {
				next := Table{Epoch: 7}
				for _, name := range table.rows {
					row := Row{Term: Term{Lease: string(name)}, Weight: 1}
					if name < 'a' {
						row.Lease, row.Weight = string(name+'a'-'A'), 0
					}
					next.Rows = append(next.Rows, row)
				}
				r.Observe(&next, began.Add(time.Duration(table.second)*time.Second))
			}
			if got := r.Settle(settle, began.Add(time.Duration(c.joined)*time.Second)); got != c.want {
				t.Errorf("a member settles for %v, want %v", got, c.want)
			}
		})
	}
}
