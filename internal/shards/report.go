package shards

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// A Report is what a member says by its renewals. What it says of the past stays true, however late it is read.
type Report struct {
	Acquired int64  // when its term began: an annotation outlives the term that wrote it
	Epoch    uint64 // the epoch of the table that it goes by; 0 until it has read one in this term
	Gen      uint64 // the generation of that table
	Mark     uint64 // and its mark
	Version  uint64 // the resourceVersion of the newest table that it has seen
	Bad      uint64 // the epoch of a table that contradicts what it saw before; 0 for none
	Keys     string // the digest of that table's keys: indexes are of that order
	Own      string // the digest of the keys that it knows; "" in a ring
	Buckets  int    // of a ring
	Weight   int    // 0 when it leaves

	// Running are the keys whose work goes on although a generation up to Gen asked them back. All others that were
	// asked back up to Gen are over.
	Running []int
	// Returned are the keys that it gives back without being asked.
	Returned []Return
	// Refused are keys that it cannot have now, because work of an earlier term has not returned, or because it does
	// not know them any more and others cannot read that yet.
	Refused []int
}

// A Return says that what a generation gave is over.
type Return struct {
	Key    int
	Given  uint64
	Failed bool // the work returned an error
}

// encodedReport is how a report is written. Numbers that follow each other are runs: the first, and how many.
type encodedReport struct {
	Format   int         `json:"v"`
	Acquired int64       `json:"t"`
	Epoch    uint64      `json:"e,omitempty"`
	Gen      uint64      `json:"g,omitempty"`
	Mark     uint64      `json:"m,omitempty"`
	Version  uint64      `json:"n,omitempty"`
	Bad      uint64      `json:"x,omitempty"`
	Keys     string      `json:"k,omitempty"`
	Own      string      `json:"o,omitempty"`
	Buckets  int         `json:"b,omitempty"`
	Weight   int         `json:"w,omitempty"`
	Running  [][2]int    `json:"r,omitempty"`
	Returned [][4]uint64 `json:"u,omitempty"` // the first, how many, given, 1 if it failed
	Refused  [][2]int    `json:"f,omitempty"`
}

const (
	// plainReport is up to which length a report is not compressed.
	plainReport = 1024
	// maxReport is how long a report may be, in bytes: all annotations of an object together have 256 KiB.
	maxReport = 200_000
	// maxRuns is of how many runs of keys of each kind a report is made at first.
	maxRuns = 1 << 15
)

// compressed begins a report that is.
const compressed = "zlib:"

// Encode returns the report as an annotation has it. One that would be too long leaves out keys that were returned,
// which stay the member's until a later report, and keys that are refused, which may be given to it: it returns them at
// once. A running key that is left out would be taken for over. So none is, and keys between them are named as well.
func (r Report) Encode() string {
	text := r.encode(maxRuns)
	for runs := maxRuns / 2; len(text) > maxReport; runs /= 2 {
		text = r.encode(runs)
	}
	return text
}

// encode returns the report with at most a number of runs of each kind of keys.
func (r Report) encode(runs int) string {
	refused := runsOf(r.Refused)
	e := encodedReport{
		tableFormat, r.Acquired, r.Epoch, r.Gen, r.Mark, r.Version, r.Bad, r.Keys, r.Own, r.Buckets, r.Weight,
		joinRuns(runsOf(r.Running), runs), nil, refused[:min(len(refused), runs)],
	}
	for i, u := range r.Returned {
		if i > 0 && u == (Return{r.Returned[i-1].Key + 1, r.Returned[i-1].Given, r.Returned[i-1].Failed}) {
			e.Returned[len(e.Returned)-1][1]++
			continue
		}
		if len(e.Returned) == runs {
			break
		}
		failed := uint64(0)
		if u.Failed {
			failed = 1
		}
		e.Returned = append(e.Returned, [4]uint64{uint64(u.Key), 1, u.Given, failed})
	}
	text, _ := json.Marshal(e) // of types that JSON can say
	if len(text) > plainReport {
		return compressed + compress(e)
	}
	return string(text)
}

// DecodeReport returns the report that an annotation has.
func DecodeReport(text string) (Report, error) {
	var e encodedReport
	var err error
	if packed, ok := strings.CutPrefix(text, compressed); ok {
		err = decompress(packed, &e)
	} else {
		err = json.Unmarshal([]byte(text), &e)
	}
	if err != nil {
		return Report{}, fmt.Errorf("the report cannot be read: %w", err)
	}
	if e.Format != tableFormat {
		return Report{}, fmt.Errorf("the report has format %d, want %d", e.Format, tableFormat)
	}
	for _, digest := range []string{e.Keys, e.Own} {
		if digest != "" && !IsDigest(digest) {
			return Report{}, fmt.Errorf("the report names keys %.40q, want a digest", digest)
		}
	}
	r := Report{
		Acquired: e.Acquired, Epoch: e.Epoch, Gen: e.Gen, Mark: e.Mark, Version: e.Version, Bad: e.Bad,
		Keys: e.Keys, Own: e.Own, Buckets: e.Buckets, Weight: max(0, min(e.Weight, MaxWeight)),
	}
	if r.Running, err = numbersOf(e.Running); err != nil {
		return Report{}, err
	}
	if r.Refused, err = numbersOf(e.Refused); err != nil {
		return Report{}, err
	}
	for _, u := range e.Returned {
		if u[0] > MaxKeys || u[1] > MaxKeys || len(r.Returned)+int(u[1]) > MaxKeys {
			return Report{}, errTooMany
		}
		for i := range int(u[1]) {
			r.Returned = append(r.Returned, Return{int(u[0]) + i, u[2], u[3] != 0})
		}
	}
	return r, nil
}

// MaxWeight is the largest weight of a member.
const MaxWeight = 1000

var errTooMany = fmt.Errorf("the report names more than %d keys", MaxKeys)

// runsOf returns ascending numbers as runs.
func runsOf(numbers []int) [][2]int {
	var runs [][2]int
	for i, n := range numbers {
		if i > 0 && n == numbers[i-1]+1 {
			runs[len(runs)-1][1]++
		} else {
			runs = append(runs, [2]int{n, 1})
		}
	}
	return runs
}

// joinRuns returns at most a number of runs that have all that runs have: those that lie closest are joined.
func joinRuns(runs [][2]int, most int) [][2]int {
	if len(runs) <= most {
		return runs
	}
	gaps := make([]int, len(runs)-1) // by the run before each
	for i := range gaps {
		gaps[i] = runs[i+1][0] - runs[i][0] - runs[i][1]
	}
	narrow := slices.Sorted(slices.Values(gaps))[len(gaps)-most] // fewer than most are wider
	joined := [][2]int{runs[0]}
	for i, r := range runs[1:] {
		if last := &joined[len(joined)-1]; gaps[i] <= narrow {
			last[1] = r[0] + r[1] - last[0]
		} else {
			joined = append(joined, r)
		}
	}
	return joined
}

// numbersOf returns the numbers of runs.
func numbersOf(runs [][2]int) ([]int, error) {
	var numbers []int
	for _, r := range runs {
		if r[0] < 0 || r[1] < 0 || r[0] > MaxKeys || r[1] > MaxKeys || len(numbers)+r[1] > MaxKeys {
			return nil, errTooMany
		}
		for i := range r[1] {
			numbers = append(numbers, r[0]+i)
		}
	}
	return numbers, nil
}
