package shards

import (
	"slices"
	"strconv"
	"strings"
)

// A Member is a term that is live as far as its Lease was seen, with what it reports.
type Member struct {
	Row
	Report   Report   // of this term; the zero Report until there is one
	Knows    []string // the keys with names that it knows, sorted
	Settling bool     // no keys move to it yet
}

// A Plan is what the next table is made of. It decides by evidence that stays true: what members reported, and that
// terms have ended. What it does not know yet, it leaves as it is.
type Plan struct {
	Table    *Table
	Names    []string // of the table's keys; nil in a ring
	Assigner Row      // who writes the next table
	Members  []Member // all that are live, and have reported the table's epoch
	Mark     uint64   // random, of the next generation
	Moves    int      // how many keys may be moving at once
	Open     bool     // keys may be given from now on

	// Ended reports whether a term is certainly over.
	Ended func(Term) bool
	// Resumes reports whether the Lease of a term that has ended shows a live term that has not reported yet: the
	// member resumes what it had.
	Resumes func(Term) bool
	// Rests reports whether key is not given out yet; nil if none rests.
	Rests func(key string) bool
	// Freed is told the keys that members gave back without being asked, and not because they leave; it may be nil.
	Freed func(key string, failed bool)
}

// Contradicts reports whether a live term's report proves that the table is not the one that the group went by.
func (t *Table) Contradicts(r Report) bool {
	switch {
	case r.Bad == t.Epoch:
		return true
	case r.Epoch == 0:
		return false
	case r.Epoch != t.Epoch:
		return t.Open
	}
	_, contradicts := t.marked(r.Gen, r.Mark)
	return contradicts
}

// NewTable returns the first table of an epoch, which follows old if that is not nil. It gives nothing until Open.
func NewTable(old *Table, epoch, mark uint64, assigner Row, buckets int) *Table {
	t := &Table{
		Epoch: epoch, Gen: 1, Marks: []uint64{mark}, Assigner: assigner.Term, Buckets: buckets, Rows: []Row{assigner},
	}
	if old != nil {
		t.Gen = old.Gen + 1
	}
	if buckets > 0 {
		t.Entries = slices.Repeat([]Entry{{Owner: nobody}}, buckets)
	} else {
		t.Keys = Digest(nil)
	}
	return t
}

// Next returns the next table and the names of its keys, and whether it says anything new.
func (p *Plan) Next() (next *Table, names []string, changed bool) {
	old := p.Table
	next = old.next(p.Mark)
	next.Assigner = p.Assigner.Term
	next.Open = old.Open || p.Open
	p.fillRows(next)
	names, next.Entries = p.keep(next)
	if old.Buckets == 0 && !same(names, p.Names) {
		next.Keys = Digest(names)
	}
	changed = p.share(next, names)
	p.dropRows(next)
	changed = changed || next.Assigner != old.Assigner || next.Keys != old.Keys || !p.equal(next, names)
	return next, names, changed
}

// fillRows gives next a row for each member, and keeps those of others that own something.
func (p *Plan) fillRows(next *Table) {
	next.Rows = slices.Clone(p.Table.Rows)
	for _, m := range append([]Member{{Row: p.Assigner}}, p.Members...) {
		if i := next.row(m.Term); i >= 0 {
			next.Rows[i] = m.Row
		} else {
			next.Rows = append(next.Rows, m.Row)
		}
	}
}

// member returns the index in Members of the term, or nobody.
func (p *Plan) member(term Term) int {
	return slices.IndexFunc(p.Members, func(m Member) bool { return m.Term == term })
}

// keep returns the entries of the next table, as far as they follow from the old one, and the names of its keys.
func (p *Plan) keep(next *Table) (names []string, entries []Entry) {
	old := p.Table
	judge := p.newJudge(next)
	kept := make([]Entry, len(old.Entries))
	for i, e := range old.Entries {
		kept[i] = judge.entry(i, e)
	}
	known := p.known()
	if old.Buckets > 0 || same(known, p.Names) {
		return p.Names, kept
	}
	var owned []string
	for i, e := range kept {
		if e.Owner != nobody {
			owned = append(owned, p.Names[i])
		}
	}
	names = union(known, owned)
	entries = make([]Entry, len(names))
	had := 0
	for i, key := range names {
		for had < len(kept) && p.Names[had] < key {
			had++
		}
		if entries[i] = (Entry{Owner: nobody}); had < len(kept) && p.Names[had] == key {
			entries[i] = kept[had]
		}
	}
	return names, entries
}

// known returns the keys that members know, sorted.
func (p *Plan) known() []string {
	var known []string
	for i, m := range p.Members {
		if !slices.ContainsFunc(p.Members[:i], func(other Member) bool { return same(other.Knows, m.Knows) }) {
			known = union(known, m.Knows)
		}
	}
	return known
}

// same reports whether a and b are one slice. Members whose sets of keys have the same digest share one.
func same(a, b []string) bool { return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0]) }

// union returns what is in a, in b or in both, all of them sorted.
func union(a, b []string) []string {
	switch {
	case len(a) == 0 || same(a, b):
		return b
	case len(b) == 0:
		return a
	}
	all := make([]string, 0, max(len(a), len(b)))
	for len(a) > 0 && len(b) > 0 {
		switch order := strings.Compare(a[0], b[0]); {
		case order < 0:
			all, a = append(all, a[0]), a[1:]
		case order > 0:
			all, b = append(all, b[0]), b[1:]
		default:
			all, a, b = append(all, a[0]), a[1:], b[1:]
		}
	}
	return append(append(all, a...), b...)
}

// A judge decides what becomes of an entry by what is known of its owner.
type judge struct {
	plan   *Plan
	next   *Table
	owners []ownerState // by row of the old table
}

// An ownerState is what is known of the owner of entries.
type ownerState struct {
	row      int  // in the next table
	ended    bool // its term is certainly over
	resumes  bool // its member is about to report in a new term
	leaving  bool // its member wants no more keys
	heir     int  // the row of its member's new term, or nobody
	running  map[int]bool
	returned map[int]Return
	acked    uint64 // what was asked back up to this generation is over, but for running
}

func (p *Plan) newJudge(next *Table) *judge {
	j := &judge{p, next, make([]ownerState, len(p.Table.Rows))}
	for i, r := range p.Table.Rows {
		s := &j.owners[i]
		s.row, s.heir = next.row(r.Term), nobody
		s.ended = p.Ended(r.Term)
		if s.ended {
			s.resumes = p.Resumes(r.Term)
			if m := slices.IndexFunc(p.Members, func(m Member) bool { return m.Lease == r.Lease }); m >= 0 {
				s.heir = next.row(p.Members[m].Term)
			}
			continue
		}
		m := p.member(r.Term)
		if m == nobody {
			continue
		}
		report := p.Members[m].Report
		s.leaving = report.Weight == 0
		if follows, _ := p.Table.marked(report.Gen, report.Mark); !follows ||
			report.Epoch != p.Table.Epoch || report.Keys != p.Table.Keys {
			continue // it says nothing of this table
		}
		s.acked = report.Gen
		s.running = map[int]bool{}
		for _, key := range report.Running {
			s.running[key] = true
		}
		s.returned = map[int]Return{}
		for _, r := range report.Returned {
			s.returned[r.Key] = r
		}
	}
	return j
}

// entry returns what becomes of entry e, the one with index i.
func (j *judge) entry(i int, e Entry) Entry {
	free := Entry{Owner: nobody}
	if e.Owner == nobody {
		return free
	}
	s := j.owners[e.Owner]
	kept := Entry{s.row, e.Given, e.Asked}
	switch {
	case s.ended && s.heir != nobody && e.Asked == 0:
		return Entry{Owner: s.heir, Given: j.next.Gen}
	case s.ended && s.resumes:
		return kept
	case s.ended:
		return free
	case e.Asked != 0 && e.Asked <= s.acked && !s.running[i]:
		return free
	case e.Asked == 0:
		if r, ok := s.returned[i]; ok && r.Given == e.Given {
			if j.plan.Freed != nil && !s.leaving {
				j.plan.Freed(nameOf(j.plan.Names, i), r.Failed)
			}
			return free
		}
	}
	return kept
}

// nameOf returns the name of the key with index i: its number in a ring, whose names are nil.
func nameOf(names []string, i int) string {
	if names == nil {
		return strconv.Itoa(i)
	}
	return names[i]
}

// share gives out the keys that nobody owns, and asks back those that others are to own.
func (p *Plan) share(next *Table, names []string) (changed bool) {
	if !next.Open {
		return false
	}
	var sharers []sharer
	var members, rows []int // by sharer
	bySharer := map[int]int{}
	for i, m := range p.Members {
		if m.Weight > 0 {
			row := next.row(m.Term)
			bySharer[row] = len(sharers)
			sharers = append(sharers, sharer{m.Weight, !m.Settling})
			members, rows = append(members, i), append(rows, row)
		}
	}
	d := division{sharers: sharers, owner: make([]int, len(next.Entries)), moves: p.Moves}
	for i, e := range next.Entries {
		d.owner[i] = nobody
		switch s, ok := bySharer[e.Owner]; {
		case e.Owner == nobody:
		case e.Asked != 0:
			d.moves--
		case ok:
			d.owner[i] = s
		}
	}
	d.moves = max(d.moves, 0)
	d.class, d.knows = p.classes(next, names, members)
	for i, want := range assign(d) {
		e := &next.Entries[i]
		switch {
		case e.Owner == nobody:
			if want != nobody && (p.Rests == nil || !p.Rests(nameOf(names, i))) {
				*e = Entry{Owner: rows[want], Given: next.Gen}
				changed = true
			}
		case d.owner[i] != nobody && want != d.owner[i]:
			e.Asked = next.Gen
			changed = true
		}
	}
	return changed
}

// classes returns the class of each key, and by class which members may have it: those that know it, and that do not
// refuse it.
func (p *Plan) classes(next *Table, names []string, members []int) (class []int, knows [][]bool) {
	may := make([]byte, len(next.Entries)*len(members)) // by key and member
	for s, m := range members {
		set := func(i int, value byte) { may[i*len(members)+s] = value }
		knows, r := p.Members[m].Knows, p.Members[m].Report
		if next.Buckets > 0 || same(knows, names) {
			for i := range next.Entries {
				set(i, 1)
			}
		} else {
			for i, name := range names {
				for len(knows) > 0 && knows[0] < name {
					knows = knows[1:]
				}
				if len(knows) > 0 && knows[0] == name {
					set(i, 1)
				}
			}
		}
		if r.Keys != p.Table.Keys {
			continue
		}
		for _, i := range r.Refused {
			known := i < len(p.Table.Entries)
			if known && next.Buckets == 0 {
				i, known = slices.BinarySearch(names, p.Names[i])
			}
			if known {
				set(i, 0)
			}
		}
	}
	class = make([]int, len(next.Entries))
	byMay := map[string]int{}
	for i := range class {
		m := may[i*len(members) : (i+1)*len(members)]
		c, ok := byMay[string(m)]
		if !ok {
			c = len(knows)
			byMay[string(m)] = c
			row := make([]bool, len(m))
			for s := range m {
				row[s] = m[s] == 1
			}
			knows = append(knows, row)
		}
		class[i] = c
	}
	return class, knows
}

// dropRows removes the rows of terms that have ended and own nothing, and gives the entries the new indexes.
func (p *Plan) dropRows(next *Table) {
	owns := make([]bool, len(next.Rows))
	for _, e := range next.Entries {
		if e.Owner != nobody {
			owns[e.Owner] = true
		}
	}
	index := make([]int, len(next.Rows))
	var rows []Row
	for i, r := range next.Rows {
		index[i] = len(rows)
		if owns[i] || r.Term == next.Assigner || p.member(r.Term) != nobody || !p.Ended(r.Term) {
			rows = append(rows, r)
		}
	}
	next.Rows = rows
	for i, e := range next.Entries {
		if e.Owner != nobody {
			next.Entries[i].Owner = index[e.Owner]
		}
	}
}

// equal reports whether next says what the old table said, with other words at most.
func (p *Plan) equal(next *Table, names []string) bool {
	old := p.Table
	if len(next.Rows) != len(old.Rows) || len(next.Entries) != len(old.Entries) || next.Open != old.Open {
		return false
	}
	for i, r := range next.Rows {
		o := old.Rows[i]
		if r.Term != o.Term || r.Identity != o.Identity || r.Weight != o.Weight {
			return false
		}
	}
	return slices.Equal(next.Entries, old.Entries)
}
