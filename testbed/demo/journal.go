package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// A record is one line of the journal, which the processes write that lead or own a key.
type record struct {
	At    time.Duration `json:"at"` // by CLOCK_BOOTTIME, which is the same for all processes
	Who   string        `json:"who"`
	PID   int           `json:"pid"`
	Key   string        `json:"key,omitempty"` // that the session is of; "" for that of a Lease
	Token uint64        `json:"token"`
	What  string        `json:"what"`
	Lost  bool          `json:"lost,omitempty"` // at the end: the lease was lost, not released
	Why   string        `json:"why,omitempty"`  // at the end
}

// What a record says about its session.
const (
	begin = "begin" // it was alive At, for the first time
	work  = "work"  // it was alive At
	end   = "end"   // its body is about to return, At
)

func lost(err error) bool { return errors.Is(err, leasehold.ErrLost) }

// A journal is written by one process: into the file that all of a scene share, and to its standard output for the demo
// to follow.
type journal struct {
	who  string
	file *os.File // opened to append: each write is one record, even if others write
	out  io.Writer
}

func (j *journal) write(r record) error {
	r.Who, r.PID = j.who, os.Getpid()
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	b = append(b, '\n')
	if _, err := j.file.Write(b); err != nil {
		return err
	}
	_, err = j.out.Write(b)
	return err
}

// pace is how often a session works.
const pace = 20 * time.Millisecond

// writeJournal is the work of a session: to write into a journal that may have only one writer at a time, of the Lease
// or of the key. It returns when the session has ended.
func (j *journal) writeJournal(s leasehold.Session, key string) error {
	token, what := s.FencingToken(), begin
	for {
		at := boottime.Now() // read before Err: a session that is alive after at was alive at at
		if s.Err() != nil {
			break
		}
		if err := j.write(record{At: at, Key: key, Token: token, What: what}); err != nil {
			return err
		}
		what = work
		select {
		case <-s.Done():
		case <-time.After(pace):
		}
	}
	return j.write(record{At: boottime.Now(), Key: key, Token: token, What: end, Lost: lost(s.Err()),
		Why: s.Err().Error()})
}

// readJournal returns the records in the order in which they were written.
func readJournal(r io.Reader) ([]record, error) {
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	var records []record
	for n, line := range bytes.Split(bytes.TrimSpace(data), []byte("\n")) {
		var r record
		if err := json.Unmarshal(line, &r); err != nil {
			return nil, fmt.Errorf("line %d of the journal: %w", n+1, err)
		}
		records = append(records, r)
	}
	return records, nil
}

// A span is the time during which a session is known to have been alive.
type span struct {
	record        // its first
	last          time.Duration
	records, ends int
}

// spans returns the sessions in the journal, in the order of their beginnings.
//
// A span ends before the record of its end if the lease was lost. A frozen process writes that record when it is
// resumed, long after another session has begun; the record tells only when the loss was noticed. Whether the process
// worked is what counts: every other record says that Err, called after At was read, was still nil. A process that
// worked after it was resumed would have written such a record, during the session of its successor. A session that was
// not lost keeps the lease until its body returns, so its end counts as work.
func spans(records []record) []span {
	type session struct {
		pid   int
		key   string
		token uint64
	}
	found := map[session]*span{}
	var order []*span
	for _, r := range records {
		s := found[session{r.PID, r.Key, r.Token}]
		if s == nil {
			s = &span{record: r, last: r.At}
			found[session{r.PID, r.Key, r.Token}] = s
			order = append(order, s)
		}
		s.records++
		if r.What == end {
			s.ends++
			if r.Lost {
				continue
			}
		}
		s.At, s.last = min(s.At, r.At), max(s.last, r.At)
	}
	sorted := make([]span, len(order))
	for i, s := range order {
		sorted[i] = *s
	}
	slices.SortStableFunc(sorted, func(a, b span) int { return cmp.Compare(a.At, b.At) })
	return sorted
}

// checkJournal checks that no two sessions, of one Lease or of one key, overlapped, and returns what it checked.
func (p *place) checkJournal() (checked string, err error) {
	f, err := os.Open(p.journal)
	if err != nil {
		return "", err
	}
	defer f.Close()
	records, err := readJournal(f)
	if err != nil {
		return "", err
	}
	byKey := map[string][]span{}
	sessions := spans(records)
	for _, s := range sessions {
		byKey[s.Key] = append(byKey[s.Key], s)
	}
	closest := time.Duration(math.MaxInt64)
	var faults []error
	for _, of := range byKey {
		apart, err := exclusive(of)
		closest, faults = min(closest, apart), append(faults, err)
	}
	return fmt.Sprintf("%d sessions, %s apart or more, in %d records of work", len(sessions), short(closest),
		len(records)), errors.Join(faults...)
}

// exclusive returns how close two sessions of one Lease or key came to each other, and an error that names those which
// overlap or have tokens that do not increase.
func exclusive(sessions []span) (closest time.Duration, err error) {
	closest = math.MaxInt64
	var faults []error
	for i := 1; i < len(sessions); i++ {
		s := sessions[i]
		if before := sessions[i-1]; s.Token <= before.Token {
			faults = append(faults, fmt.Errorf("%s had fencing token %d after %s had %d", s.Who, s.Token, before.Who,
				before.Token))
		}
		for _, before := range sessions[:i] {
			gap := s.At - before.last
			if gap <= 0 {
				faults = append(faults, fmt.Errorf("%s (token %d) led for %v beside %s (token %d)",
					s.Who, s.Token, min(s.last, before.last)-s.At, before.Who, before.Token))
			}
			closest = min(closest, gap)
		}
	}
	return closest, errors.Join(faults...)
}
