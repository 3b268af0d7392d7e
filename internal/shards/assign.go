package shards

import (
	"cmp"
	"math"
	"slices"
)

// nobody is the owner of a key that no member has.
const nobody = -1

// Unlimited is a number of moves that no division reaches.
const Unlimited = math.MaxInt

// A sharer is a member to whom keys can be assigned.
type sharer struct {
	weight int  // at least 1
	takes  bool // keys that others own may move to it; false while it is new
}

// A division is what assign is asked to divide: keys are 0, 1, 2, …, and a member is its index in sharers.
type division struct {
	sharers []sharer
	owner   []int    // by key: who has it, or nobody
	class   []int    // by key: its class; nil when all keys are of class 0
	knows   [][]bool // by class and member: whether it may have the keys of the class; nil when all may have all
	moves   int      // how many keys that a member has, and may keep, may be taken from it
}

// assign returns by key who is to own it. It is a function of the division alone:
//
//   - A key goes only to a member that may have it; to nobody if there is none.
//   - Where moves allow it, members are within one key of each other by weight: while a may give a key to b,
//     directly or by way of others, (2 n - 1) / w of a is not greater than (2 n + 1) / w of b, where n is how many
//     keys a member has and w its weight.
//   - No more keys move than that takes. A key that nobody owns never waits for a move.
//   - Neighbouring keys stay with one member, and go to one member, as far as the first three permit.
func assign(d division) []int {
	a := newAssigning(d)
	a.giveFree()
	for a.balance() {
	}
	return a.pick()
}

// An assigning counts keys by member and class until it is known how many go where; which they are comes last.
type assigning struct {
	division
	members [][]int // by class: who may have its keys
	free    []int   // by class: how many keys nobody has who may
	owned   [][]int // by member and class: how many it has now
	have    [][]int // by member and class: how many it is to have
	load    []int   // by member: how many it is to have
	moved   int     // how many that a member has now are to go to another
}

func newAssigning(d division) *assigning {
	if d.class == nil {
		d.class = make([]int, len(d.owner))
	}
	if d.knows == nil {
		d.knows = [][]bool{make([]bool, len(d.sharers))}
		for m := range d.sharers {
			d.knows[0][m] = true
		}
	}
	a := &assigning{
		division: d,
		members:  make([][]int, len(d.knows)),
		free:     make([]int, len(d.knows)),
		owned:    make([][]int, len(d.sharers)),
		have:     make([][]int, len(d.sharers)),
		load:     make([]int, len(d.sharers)),
	}
	for m := range d.sharers {
		a.owned[m] = make([]int, len(d.knows))
		for c := range d.knows {
			if d.knows[c][m] {
				a.members[c] = append(a.members[c], m)
			}
		}
	}
	for key := range d.owner {
		c := d.class[key]
		if m := a.keeper(key); m != nobody {
			a.owned[m][c]++
			a.load[m]++
		} else {
			a.free[c]++
		}
	}
	for m := range d.sharers {
		a.have[m] = slices.Clone(a.owned[m])
	}
	return a
}

// keeper returns who has key and may keep it.
func (a *assigning) keeper(key int) int {
	if m := a.owner[key]; m != nobody && a.knows[a.class[key]][m] {
		return m
	}
	return nobody
}

// gains compares what members x and y would have by weight with one key more.
func (a *assigning) gains(x, y int) int {
	return cmp.Compare((2*a.load[x]+1)*a.sharers[y].weight, (2*a.load[y]+1)*a.sharers[x].weight)
}

// improves reports whether it is fairer that x gives a key to y.
func (a *assigning) improves(x, y int) bool {
	return (2*a.load[x]-1)*a.sharers[y].weight > (2*a.load[y]+1)*a.sharers[x].weight
}

// giveFree gives each key that nobody has to the member that has least. Classes that few may have come first.
func (a *assigning) giveFree() {
	order := make([]int, 0, len(a.free))
	for c := range a.free {
		if a.free[c] > 0 && len(a.members[c]) > 0 {
			order = append(order, c)
		}
	}
	slices.SortStableFunc(order, func(x, y int) int { return cmp.Compare(len(a.members[x]), len(a.members[y])) })
	for _, c := range order {
		for range a.free[c] {
			m := slices.MinFunc(a.members[c], a.gains)
			a.have[m][c]++
			a.load[m]++
		}
	}
}

// A hop is a key of a class that goes from one member to another.
type hop struct{ from, to, class int }

// balance moves one key to a member that has less, by way of others if need be, and reports whether that made
// the division fairer.
func (a *assigning) balance() bool {
	donors := make([]int, len(a.sharers))
	for m := range donors {
		donors[m] = m
	}
	slices.SortStableFunc(donors, func(x, y int) int {
		return cmp.Compare((2*a.load[y]-1)*a.sharers[x].weight, (2*a.load[x]-1)*a.sharers[y].weight)
	})
	least := make([]int, len(a.members)) // by class: who is to get a key of it
	for c := range a.members {
		least[c] = nobody
		for _, m := range a.members[c] {
			if a.sharers[m].takes && (least[c] == nobody || a.gains(m, least[c]) < 0) {
				least[c] = m
			}
		}
	}
	for _, from := range donors {
		best := hop{to: nobody}
		for c, to := range least {
			h := hop{from, to, c}
			if to != nobody && a.have[from][c] > 0 && a.improves(from, to) && a.affords(h) &&
				(best.to == nobody || a.better(h, best)) {
				best = h
			}
		}
		if best.to != nobody {
			a.move(best)
			return true
		}
	}
	for _, from := range donors {
		if path := a.path(from); path != nil {
			for _, h := range path {
				a.move(h)
			}
			return true
		}
	}
	return false
}

// better reports whether h is to be preferred to other, which has the same donor.
func (a *assigning) better(h, other hop) bool {
	if a.cost(h) != a.cost(other) {
		return a.cost(h) < a.cost(other)
	}
	return a.gains(h.to, other.to) < 0
}

// cost returns by how much h changes the number of keys that move.
func (a *assigning) cost(h hop) int {
	n := 0
	if a.have[h.from][h.class] <= a.owned[h.from][h.class] {
		n++
	}
	if a.have[h.to][h.class] < a.owned[h.to][h.class] {
		n--
	}
	return n
}

// affords reports whether the moves suffice for hops.
func (a *assigning) affords(hops ...hop) bool {
	n := a.moved
	for _, h := range hops {
		n += a.cost(h)
	}
	return n <= a.moved || n <= a.moves
}

func (a *assigning) move(h hop) {
	a.moved += a.cost(h)
	a.have[h.from][h.class]--
	a.have[h.to][h.class]++
	a.load[h.from]--
	a.load[h.to]++
}

// path returns the shortest way by which from can give a key to a member that has less, or nil.
func (a *assigning) path(from int) []hop {
	by := make([]hop, len(a.sharers)) // how a key gets to a member
	for m := range by {
		by[m].to = nobody
	}
	seen := make([]bool, len(a.members))
	queue := []int{from}
	for len(queue) > 0 {
		x := queue[0]
		queue = queue[1:]
		for c := range a.members {
			if seen[c] || a.have[x][c] == 0 {
				continue
			}
			seen[c] = true
			for _, y := range a.members[c] {
				if y == from || by[y].to != nobody || !a.sharers[y].takes {
					continue
				}
				by[y] = hop{x, y, c}
				queue = append(queue, y)
				if !a.improves(from, y) {
					continue
				}
				var path []hop
				for at := y; at != from; at = by[at].from {
					path = append(path, by[at])
				}
				if a.affords(path...) {
					return path
				}
			}
		}
	}
	return nil
}

// pick chooses the keys that go, so that neighbours stay together.
func (a *assigning) pick() []int {
	want := make([]int, len(a.owner))
	byClass := make([][]int, len(a.members))
	for key := range want {
		want[key] = a.keeper(key)
		byClass[a.class[key]] = append(byClass[a.class[key]], key)
	}
	for c, keys := range byClass {
		need := make([]int, len(a.sharers))
		for m := range need {
			need[m] = a.have[m][c] - a.owned[m][c]
		}
		p := picking{keys, want, need}
		p.give(func(m int) bool { return !a.sharers[m].takes }) // of what is free, before there is more
		p.giveUp()
		p.give(func(int) bool { return true })
	}
	return want
}

// A picking chooses keys of one class.
type picking struct {
	keys []int // of the class, ascending
	want []int // by key
	need []int // by member: how many it is to get, or, if negative, to give up
}

// A run is a number of neighbouring keys of the class that one member, or nobody, is to own.
type run struct{ start, end, owner int }

func (r run) length() int { return r.end - r.start }

// runs returns the runs of those owners that ok accepts.
func (p *picking) runs(ok func(owner int) bool) []run {
	var runs []run
	for i := 0; i < len(p.keys); {
		r := run{i, i + 1, p.want[p.keys[i]]}
		for r.end < len(p.keys) && p.want[p.keys[r.end]] == r.owner {
			r.end++
		}
		if ok(r.owner) {
			runs = append(runs, r)
		}
		i = r.end
	}
	return runs
}

func (p *picking) set(start, end, owner int) {
	for _, key := range p.keys[start:end] {
		p.want[key] = owner
	}
}

func (p *picking) needs(owner int) int {
	if owner == nobody {
		return 0
	}
	return p.need[owner]
}

// owner returns who is to own the key at i; nobody if there is no such key.
func (p *picking) owner(i int) int {
	if i < 0 || i >= len(p.keys) {
		return nobody
	}
	return p.want[p.keys[i]]
}

// giveUp takes from each member that is to give up keys its shortest runs, and the rest from an end of a longer
// one.
func (p *picking) giveUp() {
	runs := p.runs(func(owner int) bool { return p.needs(owner) < 0 })
	slices.SortStableFunc(runs, func(a, b run) int { return cmp.Compare(a.length(), b.length()) })
	for _, r := range runs {
		n := min(r.length(), -p.needs(r.owner))
		if n <= 0 {
			continue
		}
		if n < r.length() && p.needs(p.owner(r.start-1)) > 0 {
			r.end = r.start + n // the neighbour on this side can have them
		}
		p.need[r.owner] += n
		p.set(r.end-n, r.end, nobody)
	}
}

// give gives the members that are to get some, and that ok accepts, keys that nobody is to own: neighbours of
// their own keys if possible, else the longest runs, and those first to the member that needs most.
func (p *picking) give(ok func(member int) bool) {
	takes := func(m int) bool { return p.needs(m) > 0 && ok(m) }
	for _, r := range p.runs(func(owner int) bool { return owner == nobody }) {
		if left := p.owner(r.start - 1); takes(left) {
			n := min(r.length(), p.need[left])
			p.set(r.start, r.start+n, left)
			p.need[left] -= n
			r.start += n
		}
		if right := p.owner(r.end); takes(right) && r.length() > 0 {
			n := min(r.length(), p.need[right])
			p.set(r.end-n, r.end, right)
			p.need[right] -= n
		}
	}
	runs := p.runs(func(owner int) bool { return owner == nobody })
	slices.SortStableFunc(runs, func(a, b run) int { return cmp.Compare(b.length(), a.length()) })
	order := make([]int, len(p.need))
	for m := range order {
		order[m] = m
	}
	slices.SortStableFunc(order, func(a, b int) int { return cmp.Compare(p.need[b], p.need[a]) })
	for _, m := range order {
		for takes(m) && len(runs) > 0 {
			r := &runs[0]
			n := min(r.length(), p.need[m])
			p.set(r.start, r.start+n, m)
			p.need[m] -= n
			if r.start += n; r.length() == 0 {
				runs = runs[1:]
			}
		}
	}
}
