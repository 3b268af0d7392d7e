package shards

import (
	"bytes"
	"compress/zlib"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

const (
	// tableFormat is the version of the encoding of tables and reports. A member that cannot read the table recognizes
	// those that can by the format of their reports, so a new version changes both.
	tableFormat = 1
	// keptMarks is of how many generations a table keeps the marks.
	keptMarks = 16
	// maxDecoded bounds what an annotation may decompress to.
	maxDecoded = 32 << 20
)

// A Term is one term of a member: as long as Lease, with the UID, shows it to be held since Acquired, in microseconds
// since 1970.
type Term struct {
	Lease    string
	UID      string
	Acquired int64
}

// A Row is what a table says of a member.
type Row struct {
	Term
	Seen     uint64 // a resourceVersion at which the Lease showed the term
	Identity string
	Weight   int // 0 for a member that leaves
	Seconds  int // the duration of its Lease
}

// An Entry is what a table says of a key.
type Entry struct {
	Owner int    // an index of the rows, or nobody
	Given uint64 // the generation that gave it to the owner
	Asked uint64 // the generation that asked it back; 0 if none did
}

// A Table says who owns what. Every write of it is a generation. A new epoch begins where it cannot be relied on what
// an earlier table said: after it was deleted, restored from a backup or edited.
type Table struct {
	Epoch    uint64
	Gen      uint64
	Marks    []uint64 // random numbers that name the last generations; that of Gen comes last
	Open     bool     // keys may be given
	Assigner Term     // who writes the table
	Buckets  int      // the entries are buckets; 0 for keys with names
	Keys     string   // the digest of the names, in the order of the entries
	Rows     []Row
	Entries  []Entry
}

// Mark returns the mark of the table's generation.
func (t *Table) Mark() uint64 { return t.Marks[len(t.Marks)-1] }

// marked reports whether the table is known to come after generation gen with mark, or to be it, and whether it is
// known not to.
func (t *Table) marked(gen, mark uint64) (confirms, contradicts bool) {
	switch age := t.Gen - gen; {
	case gen > t.Gen:
		return false, true
	case age < uint64(len(t.Marks)):
		confirms = t.Marks[len(t.Marks)-1-int(age)] == mark
		return confirms, !confirms
	}
	return false, false
}

// next returns the table of the next generation, without what it says.
func (t *Table) next(mark uint64) *Table {
	marks := append(slices.Clone(t.Marks), mark)
	return &Table{
		Epoch: t.Epoch, Gen: t.Gen + 1, Marks: marks[max(0, len(marks)-keptMarks):],
		Open: t.Open, Assigner: t.Assigner, Buckets: t.Buckets, Keys: t.Keys,
	}
}

// row returns the index of the row of a term, or nobody.
func (t *Table) row(term Term) int {
	return slices.IndexFunc(t.Rows, func(r Row) bool { return r.Term == term })
}

// Lists reports whether the table has a row for a term.
func (t *Table) Lists(term Term) bool { return t.row(term) >= 0 }

// GivesAny reports whether the table gives a term anything.
func (t *Table) GivesAny(term Term) bool {
	row := t.row(term)
	return row != nobody && slices.ContainsFunc(t.Entries, func(e Entry) bool { return e.Owner == row })
}

// NewestSeen returns the newest version that the table names.
func (t *Table) NewestSeen() (newest uint64) {
	for _, r := range t.Rows {
		newest = max(newest, r.Seen)
	}
	return newest
}

// encodedTable is how a table is written, as JSON that is compressed. Neighbouring entries that are equal are one run.
type encodedTable struct {
	Format   int         `json:"v"`
	Epoch    uint64      `json:"e"`
	Gen      uint64      `json:"g"`
	Marks    []uint64    `json:"m"`
	Open     bool        `json:"o,omitempty"`
	Assigner Term        `json:"a"`
	Buckets  int         `json:"b,omitempty"`
	Keys     string      `json:"k,omitempty"`
	Rows     []Row       `json:"r"`
	Entries  [][4]uint64 `json:"n"` // how many, owner + 1, given, asked
}

// Encode returns the table as an annotation has it.
func (t *Table) Encode() string {
	e := encodedTable{tableFormat, t.Epoch, t.Gen, t.Marks, t.Open, t.Assigner, t.Buckets, t.Keys, t.Rows, nil}
	for i, n := range t.Entries {
		if i > 0 && n == t.Entries[i-1] {
			e.Entries[len(e.Entries)-1][0]++
		} else {
			e.Entries = append(e.Entries, [4]uint64{1, uint64(n.Owner + 1), n.Given, n.Asked})
		}
	}
	return compress(e)
}

// DecodeTable returns the table that an annotation has. The error says what is wrong with it.
func DecodeTable(text string) (*Table, error) {
	var e encodedTable
	if err := decompress(text, &e); err != nil {
		return nil, fmt.Errorf("the table cannot be read: %w", err)
	}
	if e.Format != tableFormat {
		return nil, FormatError(e.Format)
	}
	t := &Table{e.Epoch, e.Gen, e.Marks, e.Open, e.Assigner, e.Buckets, e.Keys, e.Rows, nil}
	if t.Epoch == 0 || len(t.Marks) == 0 || len(t.Marks) > keptMarks || uint64(len(t.Marks)) > t.Gen {
		return nil, errors.New("the table has no epoch, or marks that do not fit its generation")
	}
	if t.Buckets < 0 || t.Buckets > MaxBuckets {
		return nil, fmt.Errorf("the table has %d buckets, want at most %d", t.Buckets, MaxBuckets)
	}
	if t.Buckets == 0 && !IsDigest(t.Keys) {
		return nil, fmt.Errorf("the table names keys %.40q, want a digest", t.Keys)
	}
	seen := map[Term]bool{}
	for _, r := range t.Rows {
		if !isName(r.Lease) {
			return nil, fmt.Errorf("the table names a member with the Lease %.40q, which cannot be", r.Lease)
		}
		if seen[r.Term] {
			return nil, errors.New("the table names a term twice")
		}
		seen[r.Term] = true
	}
	keys := 0
	for _, n := range e.Entries {
		if n[0] == 0 || n[0] > MaxKeys || n[1] > uint64(len(t.Rows)) || n[2] > t.Gen || n[3] > t.Gen ||
			keys+int(n[0]) > MaxKeys {
			return nil, errors.New("the table has an entry that cannot be")
		}
		keys += int(n[0])
	}
	t.Entries = slices.Grow(t.Entries, keys)
	for _, n := range e.Entries {
		for range n[0] {
			t.Entries = append(t.Entries, Entry{int(n[1]) - 1, n[2], n[3]})
		}
	}
	if t.Buckets > 0 && len(t.Entries) != t.Buckets {
		return nil, fmt.Errorf("the table has %d entries for %d buckets", len(t.Entries), t.Buckets)
	}
	if !isName(t.Assigner.Lease) {
		return nil, fmt.Errorf("the table names an assigner with the Lease %.40q, which cannot be", t.Assigner.Lease)
	}
	return t, nil
}

// isName reports whether a Lease can have a name.
func isName(name string) bool {
	return name != "" && len(name) <= 253 && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-.") == ""
}

// A FormatError is the format of a table that another version of the program wrote.
type FormatError int

func (f FormatError) Error() string {
	return fmt.Sprintf("the table has format %d, want %d", int(f), tableFormat)
}

// compress returns v as compressed JSON in base64.
func compress(v any) string {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	json.NewEncoder(w).Encode(v) // into memory, of types that JSON can say
	w.Close()
	return base64.RawStdEncoding.EncodeToString(b.Bytes())
}

// decompress reads what compress returned.
func decompress(text string, into any) error {
	data, err := base64.RawStdEncoding.DecodeString(text)
	if err != nil {
		return err
	}
	r, err := zlib.NewReader(bytes.NewReader(data))
	if err != nil {
		return err
	}
	data, err = io.ReadAll(io.LimitReader(r, maxDecoded+1))
	if err != nil {
		return err
	}
	if len(data) > maxDecoded {
		return fmt.Errorf("more than %d bytes", maxDecoded)
	}
	return json.Unmarshal(data, into)
}
