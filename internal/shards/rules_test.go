package shards

import (
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

func newOwner(term Term) *Owner {
	return NewOwner(term, 1, "", 0, &Past{}, func(string) bool { return true })
}

// planOf returns a plan of A for table, where no term has ended.
func planOf(table *Table, members ...Member) *Plan {
	return &Plan{
		Table: table, Assigner: rowA, Members: members, Moves: Unlimited, Open: true,
		Ended: make([]bool, len(table.Rows)), Resumes: make([]bool, len(table.Rows)),
	}
}

// An owner's work of key "0" is told by a script: tables that are applied, and "returned".
func TestOwner(t *testing.T) {
	table := func(gen uint64, entry Entry) *Table { return tableOf(gen, entry) }
	mine := func(given, asked uint64) Entry { return Entry{ofA, given, asked} }
	other := Entry{ofB, 9, 0}
	epoch := func(e uint64, t *Table) *Table { t.Epoch = e; return t }
	marked := func(mark uint64, t *Table) *Table { t.Marks[len(t.Marks)-1] = mark; return t }
	const returned = "returned"
	keys := func(t *Table) *Table { t.Keys = Digest([]string{"other"}); return t }
	start, stop, end := Change{Start: []string{"0"}}, Change{Stop: []string{"0"}}, Change{End: true}
	tell, first := Change{Tell: true}, Change{Start: []string{"0"}, Tell: true}
	for _, c := range []struct {
		name     string
		steps    []any // a *Table or returned
		want     Change
		running  bool // is reported: its generation is not over
		gen      uint64
		bad      bool
		epoch    uint64
		returned uint64 // the generation given back; 0 for none
	}{
		{"a grant", []any{table(5, mine(5, 0))}, first, false, 5, false, 7, 0},
		{"another's grant", []any{table(5, other)}, tell, false, 5, false, 7, 0},
		{"the same grant again", []any{table(5, mine(5, 0)), table(6, mine(5, 0))}, Change{}, false, 6, false, 7, 0},
		{"asked back", []any{table(5, mine(5, 0)), table(6, mine(5, 6))}, stop, true, 6, false, 7, 0},
		{"asked back, cancelled, not returned", []any{table(5, mine(5, 0)), table(6, mine(5, 6)), table(7, mine(5, 6))},
			Change{}, true, 7, false, 7, 0},
		{"asked back and over", []any{table(5, mine(5, 0)), table(6, mine(5, 6)), returned},
			Change{}, false, 6, false, 7, 0},
		{"asked back before it was seen", []any{table(6, mine(5, 6))}, tell, false, 6, false, 7, 0},
		{"given back", []any{table(5, mine(5, 0)), returned}, Change{}, false, 5, false, 7, 5},
		{"given back, not heard yet", []any{table(5, mine(5, 0)), returned, table(6, mine(5, 0))},
			Change{}, false, 6, false, 7, 5},
		{"given back, not heard, and the report is of other keys",
			[]any{table(5, mine(5, 0)), returned, keys(table(6, mine(5, 0)))}, tell, false, 6, false, 7, 5},
		{"given back, not heard for long", []any{table(5, mine(5, 0)), returned, table(13, mine(5, 0))},
			tell, false, 13, false, 7, 5},
		{"given back long after the first table, not heard yet",
			[]any{table(5, mine(5, 0)), table(20, mine(5, 0)), returned, table(21, mine(5, 0))},
			Change{}, false, 21, false, 7, 5},
		{"not heard for long, and nothing to hear", []any{table(5, mine(5, 0)), table(13, mine(5, 0))},
			Change{}, false, 13, false, 7, 0},
		{"given back and given again", []any{table(5, mine(5, 0)), returned, table(8, mine(8, 0))},
			start, false, 8, false, 7, 0},
		{"given again before it returned", []any{table(5, mine(5, 0)), table(8, mine(8, 0))},
			Change{}, false, 8, false, 7, 0},
		{"that, and asked back", []any{table(5, mine(5, 0)), table(9, mine(8, 9))}, stop, true, 9, false, 7, 0},
		{"taken away by hand", []any{table(5, mine(5, 0)), table(6, other)}, stop, true, 6, false, 7, 0},
		{"an older generation", []any{table(5, mine(5, 0)), table(4, mine(4, 0))}, tell, false, 5, true, 7, 0},
		{"another table of the same generation", []any{table(5, mine(5, 0)), marked(1, table(5, other))},
			tell, false, 5, true, 7, 0},
		{"a table that does not follow", []any{table(5, mine(5, 0)), func() *Table {
			next := table(6, other)
			next.Marks[len(next.Marks)-2] = 1
			return next
		}()}, tell, false, 5, true, 7, 0},
		{"what follows a table that does not", []any{table(5, mine(5, 0)), table(4, other), table(40, other)},
			Change{}, false, 5, true, 7, 0},
		{"a new epoch", []any{table(5, mine(5, 0)), epoch(8, table(6, other))}, end, false, 5, false, 7, 0},
		{"a new epoch, work goes on", []any{table(5, mine(5, 0)), epoch(8, table(6, other)), epoch(8, table(7, other))},
			Change{}, false, 5, false, 7, 0},
		{"a new epoch, work is over",
			[]any{table(5, mine(5, 0)), epoch(8, table(6, other)), returned, epoch(8, table(7, other))},
			tell, false, 7, false, 8, 0},
		{"a new epoch that gives at once", []any{table(5, other), epoch(8, table(6, mine(6, 0)))},
			first, false, 6, false, 8, 0},
		{"back to an epoch that was left", []any{table(5, other), epoch(8, table(6, other)), table(7, mine(7, 0))},
			tell, false, 6, true, 8, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := newOwner(termA)
			var got Change
			for _, step := range c.steps {
				if step == returned {
					o.Returned("0", false)
					o.Told()
					got = Change{}
				} else {
					got = o.Apply(step.(*Table), []string{"0"})
				}
			}
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("change %+v, want %+v", got, c.want)
			}
			r := o.Report(nil)
			gave := uint64(0)
			for _, u := range r.Returned {
				gave = u.Given
			}
			if (len(r.Running) > 0) != c.running || r.Gen != c.gen || r.Epoch != c.epoch || (r.Bad != 0) != c.bad ||
				gave != c.returned {
				t.Errorf("report %+v", r)
			}
		})
	}
}

// Work of an earlier term refuses the key: it is given back at once.
func TestOwnerRefuses(t *testing.T) {
	o := NewOwner(termA, 1, "", 0, &Past{}, func(string) bool { return false })
	o.Apply(tableOf(5, Entry{ofB, 5, 0}), []string{"0"})
	if c := o.Apply(tableOf(6, Entry{ofA, 6, 0}), []string{"0"}); len(c.Start) > 0 || !c.Tell {
		t.Errorf("change %+v", c)
	}
	if r := o.Report([]int{0}); len(r.Returned) != 1 || r.Returned[0] != (Return{0, 6, false}) {
		t.Errorf("report %+v", r)
	}
}

// What an owner keeps count of agrees with its grants, whatever comes.
func TestOwnerCounts(t *testing.T) {
	random := rand.New(rand.NewPCG(3, 4))
	for range 300 {
		names := []string{"0", "1", "2", "3"}
		o := NewOwner(termA, 1, "", 0, &Past{}, func(string) bool { return random.IntN(4) > 0 })
		epoch := uint64(7)
		for gen := uint64(5); gen < 60; gen++ {
			entries := make([]Entry, len(names))
			for i := range entries {
				given := gen - uint64(random.IntN(4))
				entries[i] = []Entry{{ofB, given, 0}, {ofA, given, 0}, {ofA, given, gen}}[random.IntN(3)]
			}
			switch random.IntN(12) {
			case 0:
				epoch++
			case 1:
				o.Abandon()
			}
			table := tableOf(gen, entries...)
			table.Epoch = epoch
			o.Apply(table, names)
			o.Returned(names[random.IntN(len(names))], false)
			working := 0
			for name, g := range o.grants {
				if g.running {
					working++
				}
				if reportable := g.asked != 0 || g.returned; reportable != (o.reportable[name] == g) {
					t.Fatalf("grant %+v is reportable: %v", g, !reportable)
				}
				if g.running && g.returned {
					t.Fatalf("grant %+v runs and was returned", g)
				}
			}
			if working != o.working || len(o.reportable) > len(o.grants) {
				t.Fatalf("%d grants are running, not %d; %d of %d are reportable", working,
					o.working, len(o.reportable), len(o.grants))
			}
		}
	}
}

// What becomes of an entry follows from what is known of its owner, B. A, which has the greater share, is to get what
// is free.
func TestPlan(t *testing.T) {
	const gen = 40
	newB := rowB
	newB.Acquired, newB.Seen = 3, 50
	fresh := Report{Acquired: 2, Epoch: 7, Gen: gen, Mark: 1000 + gen, Weight: 1}
	report := func(change func(*Report)) *Report {
		r := fresh
		change(&r)
		return &r
	}
	kept, free := "kept", "free"
	for _, c := range []struct {
		name           string
		entry          Entry
		report         *Report // of B's term
		ended, resumes bool
		heir           *Report // of B's new term
		want           string
	}{
		{"nothing is known", Entry{ofB, 30, 35}, nil, false, false, nil, kept},
		{"asked back and acknowledged", Entry{ofB, 30, 35}, report(func(*Report) {}), false, false, nil, free},
		{"acknowledged before it was asked back", Entry{ofB, 30, 35},
			report(func(r *Report) { r.Gen, r.Mark = 34, 1034 }),
			false, false, nil, kept},
		{"acknowledged in the generation that asked", Entry{ofB, 30, 35},
			report(func(r *Report) { r.Gen, r.Mark = 35, 1035 }),
			false, false, nil, free},
		{"work goes on", Entry{ofB, 30, 35}, report(func(r *Report) { r.Running = []int{0} }),
			false, false, nil, kept},
		{"acknowledged another table", Entry{ofB, 30, 35}, report(func(r *Report) { r.Mark = 1 }),
			false, false, nil, kept},
		{"acknowledged too long ago to tell", Entry{ofB, 2, 3}, report(func(r *Report) { r.Gen, r.Mark = 20, 1020 }),
			false, false, nil, kept},
		{"acknowledged another epoch", Entry{ofB, 30, 35}, report(func(r *Report) { r.Epoch = 6 }),
			false, false, nil, kept},
		{"acknowledged other keys", Entry{ofB, 30, 35}, report(func(r *Report) { r.Keys = Digest(nil) }),
			false, false, nil, kept},
		{"not asked back", Entry{ofB, 30, 0}, report(func(*Report) {}), false, false, nil, kept},
		{"returned", Entry{ofB, 30, 0}, report(func(r *Report) { r.Returned = []Return{{0, 30, false}} }),
			false, false, nil, "rests"},
		{"returned what was given before", Entry{ofB, 30, 0},
			report(func(r *Report) { r.Returned = []Return{{0, 29, false}} }),
			false, false, nil, kept},
		{"returned another key", Entry{ofB, 30, 0}, report(func(r *Report) { r.Returned = []Return{{1, 30, false}} }),
			false, false, nil, kept},
		{"its term ended", Entry{ofB, 30, 0}, nil, true, false, nil, free},
		{"its term ended, and the member is about to resume", Entry{ofB, 30, 0}, nil, true, true, nil, kept},
		{"its term ended, and the member resumes", Entry{ofB, 30, 0}, nil, true, false,
			report(func(*Report) {}), "heir"},
		{"that, and it was asked back", Entry{ofB, 30, 35}, nil, true, false, report(func(*Report) {}), free},
		{"a later term is no end", Entry{ofB, 30, 0}, nil, false, false, report(func(*Report) {}), kept},
	} {
		t.Run(c.name, func(t *testing.T) {
			big := rowA
			big.Weight = 100
			members := []Member{{Row: big, Report: fresh}}
			if c.report != nil {
				members = append(members, Member{Row: rowB, Report: *c.report})
			}
			if c.heir != nil {
				members = append(members, Member{Row: newB, Report: *c.heir})
			}
			p := planOf(tableOf(gen, c.entry), members...)
			p.Moves = 0
			p.Ended[ofB], p.Resumes[ofB] = c.ended, c.resumes
			next := p.Next(1).Table
			got := "free"
			switch e := next.Entries[0]; {
			case e.Owner == nobody:
				got = "rests"
			case next.Rows[e.Owner].Term == newB.Term:
				got = "heir"
				if e.Given != next.Gen || e.Asked != 0 {
					t.Errorf("entry %+v of generation %d", e, next.Gen)
				}
			case next.Rows[e.Owner].Term == termB:
				got = "kept"
				if e.Given != c.entry.Given || e.Asked != c.entry.Asked {
					t.Errorf("entry %+v, was %+v", e, c.entry)
				}
			case e.Given != next.Gen || e.Asked != 0:
				t.Errorf("entry %+v of generation %d", e, next.Gen)
			}
			if got != c.want {
				t.Errorf("%s, want %s", got, c.want)
			}
		})
	}
}

// A table that gives nothing yet gives nothing, and asks nothing back.
func TestPlanNotOpen(t *testing.T) {
	table := tableOf(2, Entry{nobody, 0, 0})
	table.Open = false
	p := planOf(table, Member{Row: rowA, Report: Report{Epoch: 7, Weight: 1}})
	p.Open = false
	if next := p.Next(1).Table; next.Open || next.Entries[0].Owner != nobody {
		t.Errorf("next %+v", next)
	}
}

// The indexes of reports are of the order of the table that they were made for, also where the keys change.
func TestPlanNames(t *testing.T) {
	old := []string{"b", "c"}
	table := tableOf(20, Entry{ofB, 3, 15}, Entry{ofB, 3, 15})
	table.Buckets, table.Keys = 0, Digest(old)
	report := Report{
		Acquired: 2, Epoch: 7, Gen: 20, Mark: 1020, Keys: Digest(old), Own: Digest(old), Weight: 1, Running: []int{1},
	}
	p := planOf(table,
		Member{Row: rowA, Report: Report{Acquired: 1, Epoch: 7, Keys: Digest(old), Weight: 1},
			Knows: []string{"a", "b"}},
		Member{Row: rowB, Report: report, Knows: []string{"a"}})
	p.Names = old
	next := p.Next(1)
	got := ""
	for i, e := range next.Table.Entries {
		got += fmt.Sprint(next.Names[i], "=", next.Table.Rows[e.Owner].Identity, " ")
	}
	if got != "a=b b=a c=b " || !next.Changed || next.Table.Keys != Digest(next.Names) {
		t.Errorf("next is %s, changed %v", got, next.Changed)
	}
}

// A plan is made again only if it says something else. What Same leaves out decides nothing, and nothing that decides
// is left out.
func TestPlanSame(t *testing.T) {
	table := tableOf(40, Entry{ofA, 30, 0}, Entry{ofB, 30, 0}, Entry{nobody, 0, 0})
	plan := func() *Plan {
		p := planOf(table,
			Member{Row: rowA, Report: Report{Acquired: 1, Epoch: 7, Gen: 40, Mark: 1040, Weight: 1}},
			Member{Row: rowB, Report: Report{Acquired: 2, Epoch: 7, Gen: 40, Mark: 1040, Weight: 1}})
		p.Rests = map[string]bool{"2": true}
		return p
	}
	old := plan()
	if old.Same(nil) {
		t.Error("a plan is the same as none")
	}
	for _, c := range []struct {
		what   string
		change func(p *Plan)
		same   bool
	}{
		{"nothing", func(*Plan) {}, true},
		{"versions", func(p *Plan) {
			p.Assigner.Seen, p.Members[0].Seen, p.Members[1].Report.Version = 99, 99, 99
		}, true},
		{"the table", func(p *Plan) { p.Table = tableOf(41, table.Entries...) }, false},
		{"a name", func(p *Plan) { p.Names = []string{"a", "b", "c"} }, false},
		{"the assigner", func(p *Plan) { p.Assigner = rowB }, false},
		{"a member less", func(p *Plan) { p.Members = p.Members[:1] }, false},
		{"a weight", func(p *Plan) { p.Members[1].Weight = 2 }, false},
		{"a term", func(p *Plan) { p.Members[1].Acquired = 9 }, false},
		{"what a member knows", func(p *Plan) { p.Members[1].Knows = []string{"a"} }, false},
		{"a member is new", func(p *Plan) { p.Members[1].New = true }, false},
		{"a generation that was acknowledged", func(p *Plan) { p.Members[1].Report.Gen = 39 }, false},
		{"work goes on", func(p *Plan) { p.Members[1].Report.Running = []int{1} }, false},
		{"a key was returned", func(p *Plan) { p.Members[1].Report.Returned = []Return{{1, 30, false}} }, false},
		{"a key is refused", func(p *Plan) { p.Members[1].Report.Refused = []int{2} }, false},
		{"how many may move", func(p *Plan) { p.Moves = 1 }, false},
		{"it opens", func(p *Plan) { p.Open = false }, false},
		{"a term has ended", func(p *Plan) { p.Ended[ofB] = true }, false},
		{"a member resumes", func(p *Plan) { p.Resumes[ofB] = true }, false},
		{"a key has rested", func(p *Plan) { p.Rests = map[string]bool{} }, false},
		{"none is given out yet", func(p *Plan) { p.Holds = true }, false},
	} {
		p := plan()
		c.change(p)
		if p.Same(old) != c.same || old.Same(p) != c.same {
			t.Errorf("%s: the same %v, want %v", c.what, !c.same, c.same)
		}
		if c.same && (p.Next(1).Changed != old.Next(2).Changed) {
			t.Errorf("%s: it decides something else", c.what)
		}
	}
	if plan().Assigner.Seen == 0 {
		t.Error("Same has changed what it compares")
	}
}

// Keys that were just freed, and those that rest, are not given out.
func TestPlanRests(t *testing.T) {
	free, failed := Entry{nobody, 0, 0}, true
	p := planOf(tableOf(40, Entry{ofB, 30, 0}, free, free),
		Member{Row: rowA, Report: Report{Acquired: 1, Epoch: 7, Gen: 40, Mark: 1040, Weight: 1}},
		Member{Row: rowB, Report: Report{Acquired: 2, Epoch: 7, Gen: 40, Mark: 1040, Weight: 1,
			Returned: []Return{{0, 30, failed}}}})
	p.Rests = map[string]bool{"1": true}
	next := p.Next(1)
	if !reflect.DeepEqual(next.Freed, map[string]bool{"0": failed}) {
		t.Errorf("freed %v", next.Freed)
	}
	for i, want := range []bool{false, false, true} {
		if given := next.Table.Entries[i].Owner != nobody; given != want {
			t.Errorf("key %d is given out: %v, want %v", i, given, want)
		}
	}
	p.Holds = true
	if next := p.Next(1); next.Table.Entries[2].Owner != nobody {
		t.Error("a key is given out although none is yet")
	}
	p.Members[1].Report.Weight = 0
	if next := p.Next(1); len(next.Freed) > 0 {
		t.Errorf("freed %v, want no rest for the keys of who leaves", next.Freed)
	}
}

func TestContradicts(t *testing.T) {
	for _, c := range []struct {
		name   string
		report Report
		closed bool
		want   bool
	}{
		{"it read no table", Report{}, false, false},
		{"the same generation", Report{Epoch: 7, Gen: 40, Mark: 1040}, false, false},
		{"an earlier generation", Report{Epoch: 7, Gen: 30, Mark: 1030}, false, false},
		{"one too early to tell", Report{Epoch: 7, Gen: 10, Mark: 5}, false, false},
		{"a later generation", Report{Epoch: 7, Gen: 41, Mark: 1041}, false, true},
		{"another table", Report{Epoch: 7, Gen: 40, Mark: 5}, false, true},
		{"another table before", Report{Epoch: 7, Gen: 39, Mark: 5}, false, true},
		{"another epoch", Report{Epoch: 6, Gen: 40, Mark: 1040}, false, true},
		{"another epoch, before this one gives", Report{Epoch: 6, Gen: 40, Mark: 1040}, true, false},
		{"it says so", Report{Epoch: 6, Bad: 7}, true, true},
		{"it says so of another", Report{Epoch: 7, Gen: 40, Mark: 1040, Bad: 6}, false, false},
	} {
		table := tableOf(40, Entry{nobody, 0, 0})
		table.Open = !c.closed
		if got := table.Contradicts(c.report); got != c.want {
			t.Errorf("%s: %v, want %v", c.name, got, c.want)
		}
	}
}

// The names of the next table are those that members know, or whose keys are owned yet, and a key is given only to who
// knows it and does not refuse it: whether members share a set of keys with the table, or have one of their own.
func TestPlanKeySets(t *testing.T) {
	random := rand.New(rand.NewPCG(7, 8))
	subset := func(of []string) (some []string) {
		for _, key := range of {
			if random.IntN(3) > 0 {
				some = append(some, key)
			}
		}
		return some
	}
	for range 2000 {
		all := []string{"a", "b", "c", "d", "e", "f"}
		old := subset(all)
		var entries []Entry
		for range old {
			entries = append(entries, []Entry{{nobody, 0, 0}, {ofA, 3, 0}, {ofB, 3, 0}, {ofB, 3, 15}}[random.IntN(4)])
		}
		table := tableOf(20, entries...)
		table.Buckets, table.Keys = 0, Digest(old)
		knows, refused := [][]string{old, old}, [][]int{nil, nil}
		for m := range knows {
			if random.IntN(2) == 0 {
				knows[m] = subset(all)
			}
			for i := range old {
				if random.IntN(4) == 0 {
					refused[m] = append(refused[m], i)
				}
			}
		}
		next := func(knows ...[]string) (*Table, []string) {
			p := planOf(table)
			p.Names = old
			for m, row := range []Row{rowA, rowB} {
				p.Members = append(p.Members, Member{Row: row, Knows: knows[m], Report: Report{
					Acquired: row.Acquired, Epoch: 7, Gen: 20, Mark: 1020, Keys: Digest(old), Weight: 1,
					Refused: refused[m]}})
			}
			next := p.Next(1)
			return next.Table, next.Names
		}
		got, names := next(knows...)
		again, alike := next(slices.Clone(knows[0]), slices.Clone(knows[1]))
		if !reflect.DeepEqual(got, again) || !slices.Equal(names, alike) {
			t.Fatalf("with sets of their own: %+v of %v, and otherwise %+v of %v", again, alike, got, names)
		}
		if got.Keys != Digest(names) || len(got.Entries) != len(names) || !slices.IsSorted(names) {
			t.Fatalf("%d entries of %v", len(got.Entries), names)
		}
		for _, key := range all {
			was, had := slices.BinarySearch(old, key)
			known := slices.Contains(knows[0], key) || slices.Contains(knows[1], key)
			owned := had && entries[was].Owner != nobody && entries[was].Asked == 0
			i, has := slices.BinarySearch(names, key)
			if has != (known || owned) {
				t.Fatalf("key %s is there: %v; known: %v, owned: %v", key, has, known, owned)
			}
			if !has || got.Entries[i].Owner == nobody || had && got.Entries[i].Given == entries[was].Given {
				continue
			}
			m := got.Entries[i].Owner
			if !slices.Contains(knows[m], key) || had && slices.Contains(refused[m], was) {
				t.Fatalf("key %s is given to %d, who knows %v and refuses %v of %v", key, m, knows, refused, old)
			}
		}
	}
}

// One of four members with 10,000 keys crashes: the next table, and what the others make of it.
func BenchmarkCrash(b *testing.B) {
	keys := make([]string, 10_000)
	for i := range keys {
		keys[i] = fmt.Sprintf("tenant-%08d", i)
	}
	digest := Digest(keys)
	table := tableOf(20, make([]Entry, len(keys))...)
	table.Buckets, table.Keys, table.Rows = 0, digest, nil
	p := planOf(table)
	p.Names = keys
	for m := range 4 {
		row := Row{Term{fmt.Sprint("group-m-", m), fmt.Sprint("uid-", m), int64(m)}, 10, fmt.Sprint("m", m), 1, 15}
		table.Rows = append(table.Rows, row)
		if m > 0 {
			p.Members = append(p.Members, Member{Row: row, Knows: keys, Report: Report{
				Acquired: row.Acquired, Epoch: 7, Gen: 20, Mark: 1020, Keys: digest, Own: digest, Weight: 1}})
		}
	}
	p.Assigner, table.Assigner = table.Rows[1], table.Rows[1].Term
	for i := range table.Entries {
		table.Entries[i] = Entry{i * 4 / len(keys), 20, 0}
	}
	p.Ended, p.Resumes = []bool{true, false, false, false}, make([]bool, 4)
	next := p.Next(1).Table
	text := next.Encode()
	b.Run("plan", func(b *testing.B) {
		for b.Loop() {
			p.Next(1)
		}
	})
	b.Run("encode", func(b *testing.B) {
		for b.Loop() {
			next.Encode()
		}
	})
	b.Run("decode", func(b *testing.B) {
		for b.Loop() {
			DecodeTable(text)
		}
	})
	b.Run("apply", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			o := NewOwner(table.Rows[2].Term, 1, digest, 0, &Past{}, func(string) bool { return true })
			o.Apply(table, keys)
			b.StartTimer()
			o.Apply(next, keys)
		}
	})
}
