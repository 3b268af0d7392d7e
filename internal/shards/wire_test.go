package shards

import (
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
)

var (
	termA = Term{"group-m-a", "uid-a", 1}
	termB = Term{"group-m-b", "uid-b", 2}
	rowA  = Row{termA, 10, "a", 1, 15}
	rowB  = Row{termB, 11, "b", 1, 15}
)

// tableOf returns a table of generation gen, in epoch 7, of a ring: A and B are its rows.
func tableOf(gen uint64, entries ...Entry) *Table {
	t := &Table{
		Epoch: 7, Gen: gen, Open: true, Assigner: termA, Buckets: len(entries), Rows: []Row{rowA, rowB},
		Entries: entries,
	}
	for g := max(gen, keptMarks) - keptMarks + 1; g <= gen; g++ {
		t.Marks = append(t.Marks, 1000+g)
	}
	return t
}

const (
	ofA = 0 // an owner
	ofB = 1
)

func TestTableRoundTrip(t *testing.T) {
	for _, want := range []*Table{
		tableOf(1, Entry{nobody, 0, 0}),
		tableOf(40, Entry{ofA, 3, 0}, Entry{ofA, 3, 0}, Entry{ofB, 5, 9}, Entry{nobody, 0, 0}),
		{Epoch: math.MaxUint64, Gen: 1, Marks: []uint64{math.MaxUint64}, Keys: Digest(nil), Assigner: termB,
			Rows: []Row{rowB}},
		{Epoch: 1, Gen: 2, Marks: []uint64{1, 2}, Open: true, Assigner: termA, Keys: Digest([]string{"k"}),
			Rows: []Row{rowB}, Entries: []Entry{{0, 2, 0}}},
	} {
		got, err := DecodeTable(want.Encode())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestReportRoundTrip(t *testing.T) {
	long := Report{Acquired: 1, Epoch: 2, Weight: 1}
	for i := range 5000 {
		long.Running = append(long.Running, 3*i)
	}
	for _, want := range []Report{
		{},
		{Acquired: 1, Epoch: 2, Gen: 3, Mark: math.MaxUint64, Version: 5, Bad: 6, Keys: Digest(nil), Own: Digest(nil),
			Weight: MaxWeight, Running: []int{0, 1, 2, 7}, Refused: []int{4},
			Returned: []Return{{0, 1, false}, {1, 1, false}, {2, 2, false}, {3, 2, true}, {9, 2, true}}},
		{Acquired: 1, Buckets: 64},
		long,
	} {
		got, err := DecodeReport(want.Encode())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestKeySetRoundTrip(t *testing.T) {
	var many []string
	for i := range 30_000 {
		many = append(many, strings.Repeat("k", 1+i%40)+string(rune('a'+i%26))+strings.Repeat("0", i/100))
	}
	sorted, err := SortKeys([]string{"b", "ä", "a"})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range [][]string{nil, {"k"}, sorted, many} {
		pages := Pages(want)
		read := func(i int) (string, error) { return pages[i], nil }
		got, err := ReadPages(Digest(want), read)
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%d keys on %d pages: got %d, %v", len(want), len(pages), len(got), err)
		}
		if _, err := ReadPages(Digest([]string{"other"}), read); err == nil {
			t.Errorf("%d keys were read as others", len(want))
		}
	}
	for _, wrong := range [][]string{{""}, {"a", "a"}, {strings.Repeat("a", 257)}, {"\xff"}} {
		if _, err := SortKeys(wrong); err == nil {
			t.Errorf("keys %q are accepted", wrong)
		}
	}
}

// What somebody wrote by hand is an error, and not what cannot be.
func TestDecodeHostile(t *testing.T) {
	row := `{"Lease":"l","UID":"u","Acquired":1}`
	for _, text := range []string{
		`null`, `[]`, `{}`, `{"v":1,"e":1}`,
		`{"v":2,"e":1,"g":1,"m":[1],"b":1,"n":[[1,0,0,0]]}`,
		`{"v":1,"e":0,"g":1,"m":[1],"b":1,"n":[[1,0,0,0]]}`, // no epoch
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"n":[[1,0,0,0]]}`, // no assigner
		// a name that no Lease can have
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"n":[[1,0,0,0]],"a":{"Lease":"l"},"r":[{"Lease":"../x"}]}`,
		`{"v":1,"e":1,"g":1,"m":[],"b":1,"n":[[1,0,0,0]]}`, // no mark
		// more marks than generations
		`{"v":1,"e":1,"g":1,"m":[1,2],"b":1,"n":[[1,0,0,0]]}`,
		`{"v":1,"e":1,"g":1,"m":[1],"b":-1}`,                                              // buckets
		`{"v":1,"e":1,"g":1,"m":[1],"b":65537,"n":[[65537,0,0,0]]}`,                       //
		`{"v":1,"e":1,"g":1,"m":[1],"b":2,"n":[[1,0,0,0]]}`,                               // too few entries
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"n":[[1,1,0,0]]}`,                               // an owner without row
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"n":[[1,18446744073709551615,0,0]]}`,            //
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"n":[[0,0,0,0],[1,0,0,0]]}`,                     // an empty run
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"n":[[18446744073709551615,0,0,0]]}`,            //
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"r":[` + row + `],"n":[[1,1,2,0]]}`,             // given in the future
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"r":[` + row + `],"n":[[1,1,1,2]]}`,             // asked back in the future
		`{"v":1,"e":1,"g":1,"m":[1],"b":1,"r":[` + row + `,` + row + `],"n":[[1,1,1,0]]}`, // a term twice
		`{"v":1,"e":1,"g":1,"m":[1],"k":"../../pods"}`,
		`{"v":1,"e":1,"g":1,"m":[1]}`,
	} {
		if got, err := DecodeTable(pack(text)); err == nil {
			t.Errorf("table %s was read as %+v", text, got)
		}
	}
	for _, text := range []string{
		``, `null`, `{}`, `{"v":2}`, `zlib:`, `zlib:AAAA`,
		`{"v":1,"t":1,"r":[[-1,1]]}`, `{"v":1,"t":1,"r":[[0,-1]]}`, `{"v":1,"t":1,"f":[[0,1048577]]}`,
		`{"v":1,"t":1,"r":[[0,1000000],[0,1000000]]}`,
		`{"v":1,"t":1,"u":[[0,1048577,1,0]]}`, `{"v":1,"t":1,"u":[[18446744073709551615,1,1,0]]}`,
		`{"v":1,"t":1,"o":"x"}`, `{"v":1,"t":1,"k":"../x"}`,
	} {
		if got, err := DecodeReport(text); err == nil {
			t.Errorf("report %s was read as %+v", text, got)
		}
	}
	if got, err := DecodeReport(`{"v":1,"w":1000000}`); err != nil || got.Weight != MaxWeight {
		t.Errorf("weight %d, %v", got.Weight, err)
	}
}

// pack returns what a table's annotation says for a JSON text.
func pack(text string) string { return compress(rawJSON(text)) }

type rawJSON string

func (r rawJSON) MarshalJSON() ([]byte, error) { return []byte(r), nil }

// FuzzDecodeTable shows that whatever an annotation says is an error or a table that can be gone by.
func FuzzDecodeTable(f *testing.F) {
	f.Add(`{"v":1,"e":1,"g":1,"m":[1],"b":1,"n":[[1,0,0,0]]}`)
	f.Add(`{"v":1,"e":7,"g":3,"m":[1,2,3],"o":true,"b":2,"a":{"Lease":"l"},"r":[{"Lease":"l","UID":"u"}],"n":[[2,` +
		`1,2,3]]}`)
	f.Add(`{"v":1,"e":1,"g":1,"m":[1],"k":"e3b0c44298fc1c149afbf4c8996fb924"}`)
	f.Fuzz(func(t *testing.T, text string) {
		DecodeTable(text)
		table, err := DecodeTable(pack(text))
		if err != nil {
			return
		}
		again, err := DecodeTable(table.Encode())
		if err != nil || !reflect.DeepEqual(again.Entries, table.Entries) || again.Gen != table.Gen {
			t.Errorf("%+v is read again as %+v, %v", table, again, err)
		}
		names := make([]string, len(table.Entries))
		for i := range names {
			names[i] = strings.Repeat("k", 1+i%100) + string(rune(i))
		}
		for _, r := range table.Rows {
			o := newOwner(r.Term)
			o.Apply(table, names)
			o.Unanswered(table)
			o.Report(nil)
		}
		report := Report{Acquired: 1, Epoch: table.Epoch, Gen: table.Gen, Mark: table.Mark(), Keys: table.Keys,
			Weight: 1}
		p := planOf(table, Member{Row: rowA, Report: report})
		if table.Buckets == 0 {
			p.Names = names
		}
		if len(table.Entries) < 1000 {
			p.Next(1)
		}
	})
}

// A report with very many keys fits into an annotation. Whatever is running is in it, and nothing else is returned or
// refused than was.
func TestReportTooLong(t *testing.T) {
	chance := rand.New(rand.NewPCG(1, 2))
	for _, most := range []int{100, 3_000, 200_000} {
		want := Report{Acquired: 1, Epoch: 2, Gen: 3, Mark: 4, Keys: Digest(nil), Weight: 1}
		for key := 0; len(want.Running) < most && key < MaxKeys-8; {
			key += 1 + chance.IntN(3)
			want.Running = append(want.Running, key)
			key += 1 + chance.IntN(3)
			want.Returned = append(want.Returned, Return{key, chance.Uint64(), key%2 == 0})
			key++
			want.Refused = append(want.Refused, key)
		}
		text := want.Encode()
		if len(text) > maxReport {
			t.Errorf("%d keys of each kind: %d bytes, want at most %d", most, len(text), maxReport)
		}
		got, err := DecodeReport(text)
		if err != nil {
			t.Fatal(err)
		}
		if most <= 3_000 && !reflect.DeepEqual(got, want) {
			t.Errorf("%d keys of each kind: something is left out", most)
		}
		running := map[int]bool{}
		for _, key := range got.Running {
			running[key] = true
		}
		for _, key := range want.Running {
			if !running[key] {
				t.Fatalf("%d keys of each kind: %d is taken for over", most, key)
			}
		}
		if n := len(got.Returned); n == 0 || !slices.Equal(got.Returned, want.Returned[:n]) {
			t.Errorf("%d keys of each kind: %d are returned, and they are not the first", most, n)
		}
		if n := len(got.Refused); n == 0 || !slices.Equal(got.Refused, want.Refused[:n]) {
			t.Errorf("%d keys of each kind: %d are refused, and they are not the first", most, n)
		}
	}
}

// Runs are joined where they lie closest.
func TestJoinRuns(t *testing.T) {
	runs := [][2]int{{1, 2}, {4, 1}, {9, 1}, {11, 3}, {30, 1}}
	for most, want := range [][][2]int{
		1: {{1, 30}},
		2: {{1, 13}, {30, 1}},
		3: {{1, 4}, {9, 5}, {30, 1}},
		4: {{1, 4}, {9, 5}, {30, 1}}, // of gaps that are alike all are closed
		5: runs,
	} {
		if most > 0 {
			if got := joinRuns(runs, most); !slices.Equal(got, want) {
				t.Errorf("at most %d runs: %v, want %v", most, got, want)
			}
		}
	}
}

// FuzzDecodeReport shows that whatever a report says is an error or can be planned by.
func FuzzDecodeReport(f *testing.F) {
	f.Add(`{"v":1,"t":1,"e":7,"g":40,"m":1040,"r":[[0,2]],"u":[[2,1,3,1]],"f":[[3,1]],"w":1}`)
	f.Add("zlib:eJw")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := DecodeReport(text)
		if err != nil {
			if r, err = DecodeReport(compressed + pack(text)); err != nil {
				return
			}
		}
		table := tableOf(40, Entry{ofA, 3, 0}, Entry{ofA, 3, 30}, Entry{ofB, 5, 9}, Entry{nobody, 0, 0})
		table.Contradicts(r)
		planOf(table, Member{Row: rowA, Report: r}, Member{Row: rowB, Report: r}).Next(1)
		again, err := DecodeReport(r.Encode())
		if err != nil || again.Gen != r.Gen || len(again.Returned) != len(r.Returned) {
			t.Errorf("%+v is read again as %+v, %v", r, again, err)
		}
	})
}
