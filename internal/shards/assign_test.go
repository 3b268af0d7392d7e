package shards

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// equals returns n members of weight 1 that have settled.
func equals(n int) []sharer { return slices.Repeat([]sharer{{1, true}}, n) }

func TestAssign(t *testing.T) {
	const free = nobody
	all := []bool{true, true}
	for _, c := range []struct {
		name string
		d    division
		want []int
	}{
		{"no members", division{owner: []int{free, free}}, []int{free, free}},
		{"no keys", division{sharers: equals(3)}, []int{}},
		{"one member takes all", division{sharers: equals(1), owner: []int{free, free, free}}, []int{0, 0, 0}},
		{"a group begins: runs", division{sharers: equals(2), owner: []int{free, free, free, free}}, []int{0, 0, 1, 1}},
		{"balanced: nothing moves", division{sharers: equals(2), owner: []int{1, 0, 1, 0}, moves: Unlimited},
			[]int{1, 0, 1, 0}},
		{"within one: nothing moves", division{sharers: equals(2), owner: []int{0, 0, 1}, moves: Unlimited},
			[]int{0, 0, 1}},
		{"a member joins: only the surplus moves",
			division{sharers: equals(3), owner: []int{0, 0, 0, 1, 1, 1}, moves: Unlimited}, []int{0, 0, 2, 1, 1, 2}},
		{"a member left: its keys are shared out",
			division{sharers: equals(2), owner: []int{0, free, 1, free}, moves: Unlimited}, []int{0, 0, 1, 1}},
		{"a free key goes to the member that has least", division{sharers: equals(2), owner: []int{0, 0, free}},
			[]int{0, 0, 1}},
		{"moves are limited", division{sharers: equals(2), owner: []int{0, 0, 0, 0, 0, 0}, moves: 1},
			[]int{0, 0, 0, 0, 0, 1}},
		{"no moves", division{sharers: equals(2), owner: []int{0, 0, 0, 0}}, []int{0, 0, 0, 0}},
		{"a member that settles gets free keys only",
			division{sharers: []sharer{{1, true}, {1, false}}, owner: []int{0, 0, 0, 0, free}, moves: Unlimited},
			[]int{0, 0, 0, 0, 1}},
		{"weights", division{sharers: []sharer{{3, true}, {1, true}}, owner: []int{free, free, free, free}},
			[]int{0, 0, 0, 1}},
		{"a key that only one knows",
			division{sharers: equals(2), owner: []int{free, free}, class: []int{0, 1},
				knows: [][]bool{all, {true, false}}}, []int{1, 0}},
		{"a key that nobody knows",
			division{sharers: equals(1), owner: []int{free, free}, class: []int{0, 1},
				knows: [][]bool{{true}, {false}}}, []int{0, free}},
		{"an owner that does not know its key any more: none of the moves",
			division{sharers: equals(2), owner: []int{0, 1}, class: []int{1, 0}, knows: [][]bool{all, {false, true}}},
			[]int{1, 1}},
		{"by way of another",
			division{sharers: equals(3), owner: []int{0, 0, 0, 1, 1}, class: []int{0, 0, 0, 1, 1}, moves: Unlimited,
				knows: [][]bool{{true, true, false}, {false, true, true}}}, []int{0, 0, 1, 1, 2}},
		{"the shortest runs move as a whole",
			division{sharers: equals(2), owner: []int{0, 0, 0, 0, 1, 0, 1}, moves: Unlimited},
			[]int{0, 0, 0, 0, 1, 1, 1}},
	} {
		if got := assign(c.d); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, want %v", c.name, got, c.want)
		}
	}
}

// may reports whether member m may have key.
func (d division) may(key, m int) bool { return d.knows == nil || d.knows[d.class[key]][m] }

// check returns what is wrong with want as the answer to d.
func (d division) check(want []int) error {
	if len(want) != len(d.owner) {
		return fmt.Errorf("%d answers about %d keys", len(want), len(d.owner))
	}
	n, moved := make([]int, len(d.sharers)), 0
	for key, m := range want {
		if m == nobody {
			for m := range d.sharers {
				if d.may(key, m) {
					return fmt.Errorf("key %d is nobody's, and %d may have it", key, m)
				}
			}
			continue
		}
		if !d.may(key, m) {
			return fmt.Errorf("key %d goes to %d, which does not know it", key, m)
		}
		n[m]++
		if was := d.owner[key]; was != nobody && was != m && d.may(key, was) {
			moved++
			if !d.sharers[m].takes {
				return fmt.Errorf("key %d moves from %d to %d, which has not settled", key, was, m)
			}
		}
	}
	if moved > d.moves {
		return fmt.Errorf("%d keys move, of %d that may", moved, d.moves)
	}
	if d.moves < len(d.owner) {
		return nil
	}
	for x := range d.sharers {
		for _, y := range d.reachable(want, x) {
			if (2*n[x]-1)*d.sharers[y].weight > (2*n[y]+1)*d.sharers[x].weight {
				return fmt.Errorf("unfair: %v have %v, and %d could give to %d", d.sharers, n, x, y)
			}
		}
	}
	return nil
}

// reachable returns to whom a key of x could go, by way of others too.
func (d division) reachable(want []int, x int) []int {
	var reached []int
	queue := []int{x}
	for len(queue) > 0 {
		from := queue[0]
		queue = queue[1:]
		for key, m := range want {
			for to := range d.sharers {
				if m == from && to != x && d.sharers[to].takes && d.may(key, to) && !slices.Contains(reached, to) {
					reached = append(reached, to)
					queue = append(queue, to)
				}
			}
		}
	}
	return reached
}

// divisionFrom makes a small division of any kind out of data.
func divisionFrom(data []byte) division {
	next := func(n int) int {
		if len(data) == 0 {
			return 0
		}
		v := int(data[0]) % n
		data = data[1:]
		return v
	}
	d := division{sharers: make([]sharer, next(6)), moves: Unlimited}
	for m := range d.sharers {
		d.sharers[m] = sharer{1 + next(4)*next(3), next(5) > 0}
	}
	for range 1 + next(4) {
		row := make([]bool, len(d.sharers))
		for m := range row {
			row[m] = next(4) > 0
		}
		d.knows = append(d.knows, row)
	}
	for range next(40) {
		d.owner = append(d.owner, next(len(d.sharers)+1)-1)
		d.class = append(d.class, next(len(d.knows)))
	}
	if next(3) == 0 {
		d.moves = next(10)
	}
	return d
}

func FuzzAssign(f *testing.F) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var data []byte
		for range 15 {
			data = binary.LittleEndian.AppendUint64(data, random.Uint64())
		}
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		d := divisionFrom(data)
		want := assign(d)
		if err := d.check(want); err != nil {
			t.Fatalf("%v\n%+v\n%v", err, d, want)
		}
		if again := assign(d); !slices.Equal(again, want) {
			t.Fatalf("not deterministic: %v, then %v", want, again)
		}
		if d.moves == Unlimited {
			d.owner = want
			if again := assign(d); !slices.Equal(again, want) {
				t.Fatalf("not settled: %v, then %v", want, again)
			}
		}
	})
}

// TestAssignMovesNoMoreThanNeeded compares with all divisions that are fair, where every member may have every key.
func TestAssignMovesNoMoreThanNeeded(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 3000 {
		d := division{sharers: equals(1 + random.IntN(4)), moves: Unlimited}
		for m := range d.sharers {
			d.sharers[m].weight = 1 + random.IntN(3)
		}
		keys := random.IntN(12)
		owned := make([]int, len(d.sharers))
		for range keys {
			m := random.IntN(len(d.sharers)+1) - 1
			d.owner = append(d.owner, m)
			if m != nobody {
				owned[m]++
			}
		}
		fewest := keys
		counts := make([]int, len(d.sharers))
		var try func(m, left int)
		try = func(m, left int) {
			if m < len(counts)-1 {
				for n := 0; n <= left; n++ {
					counts[m] = n
					try(m+1, left-n)
				}
				return
			}
			counts[m] = left
			moves := 0
			for x := range counts {
				moves += max(0, owned[x]-counts[x])
				for y := range counts {
					if (2*counts[x]-1)*d.sharers[y].weight > (2*counts[y]+1)*d.sharers[x].weight {
						return
					}
				}
			}
			fewest = min(fewest, moves)
		}
		try(0, keys)
		got := 0
		for key, m := range assign(d) {
			if was := d.owner[key]; was != nobody && was != m {
				got++
			}
		}
		if got != fewest {
			t.Fatalf("%d keys move, %d would do: %+v", got, fewest, d)
		}
	}
}

// TestAssignKeepsRuns restarts members one after the other, and counts the ranges that a shardSelector would need.
func TestAssignKeepsRuns(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for _, c := range []struct{ buckets, members, most int }{{4096, 3, 80}, {4096, 10, 80}, {65536, 10, 80}} {
		d := division{sharers: equals(c.members), owner: slices.Repeat([]int{nobody}, c.buckets),
			class: make([]int, c.buckets),
			knows: [][]bool{slices.Repeat([]bool{true}, c.members)}, moves: Unlimited}
		worst := 0
		for range 100 {
			d.owner = assign(d)
			runs := make([]int, c.members)
			for b, m := range d.owner {
				if b == 0 || d.owner[b-1] != m {
					runs[m]++
				}
			}
			worst = max(worst, slices.Max(runs))
			gone := random.IntN(c.members)
			for b, m := range d.owner {
				if m == gone {
					d.owner[b] = nobody
				}
			}
			d.knows[0][gone] = false
			d.owner = assign(d)
			d.knows[0][gone] = true
		}
		t.Logf("%d buckets, %d members, 100 restarts: at most %d runs a member", c.buckets, c.members, worst)
		if worst > c.most {
			t.Errorf("%d buckets, %d members: %d runs, want at most %d", c.buckets, c.members, worst, c.most)
		}
	}
}

// What a division costs grows with the keys, whatever is to be divided: ten times as many cost about ten times as much.
func TestAssignCost(t *testing.T) {
	const members, few, many, most = 100, 1000, 10_000, 40
	sets := func(keys, sets int) division { // everything is the first member's
		d := division{
			sharers: equals(members), owner: make([]int, keys), class: make([]int, keys), moves: Unlimited,
		}
		for set := range sets {
			row := make([]bool, members)
			for m := range row {
				row[m] = m == 0 || (m+set)%3 > 0
			}
			d.knows = append(d.knows, row)
		}
		for key := range d.class {
			d.class[key] = key % sets
		}
		return d
	}
	for _, c := range []struct {
		name string
		make func(keys int) division
	}{
		{"a group begins", func(keys int) division {
			return division{sharers: equals(members), owner: slices.Repeat([]int{nobody}, keys), moves: Unlimited}
		}},
		{"one owns all", func(keys int) division { return sets(keys, 1) }},
		{"one owns all, and there are many sets of keys", func(keys int) division { return sets(keys, members/2) }},
		{"keys go by way of others", func(keys int) division {
			d := sets(keys, members)
			for set, row := range d.knows {
				for m := range row {
					row[m] = m == set || m == (set+1)%members
				}
			}
			return d
		}},
	} {
		cost := func(keys int) time.Duration {
			d, began := c.make(keys), time.Now()
			assign(d)
			return time.Since(began)
		}
		var one, ten time.Duration
		for range 5 { // the machine may be busy with something else
			if one, ten = cost(few), cost(many); ten <= most*one {
				break
			}
		}
		t.Logf("%s: %d keys in %v, %d in %v", c.name, few, one, many, ten)
		if ten > most*one {
			t.Errorf("%s: %d keys take %v, more than %d times the %v of %d", c.name, many, ten, most, one, few)
		}
	}
}

func BenchmarkAssign(b *testing.B) {
	for _, c := range []struct{ keys, members int }{{1000, 10}, {10000, 100}, {65536, 100}} {
		last := c.members - 1
		for _, what := range []string{"begin", "join", "crash", "two key sets"} {
			b.Run(fmt.Sprintf("%d keys/%d members/%s", c.keys, c.members, what), func(b *testing.B) {
				d := division{sharers: equals(c.members), owner: slices.Repeat([]int{nobody}, c.keys), moves: Unlimited}
				switch what {
				case "join":
					d.sharers = equals(last)
					d.owner = assign(d)
					d.sharers = equals(c.members)
				case "crash":
					d.owner = assign(d)
					for key, m := range d.owner {
						if m == last {
							d.owner[key] = nobody
						}
					}
					d.sharers = equals(last)
				case "two key sets":
					d.owner = assign(d)
					d.class = make([]int, c.keys)
					d.knows = [][]bool{slices.Repeat([]bool{true}, c.members), make([]bool, c.members)}
					for m := range c.members / 2 {
						d.knows[1][m] = true
					}
					for key := range c.keys / 4 {
						d.class[4*key] = 1
					}
				}
				for b.Loop() {
					assign(d)
				}
			})
		}
	}
}
