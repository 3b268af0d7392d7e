package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// A timeline records a scene so far. All times are by CLOCK_BOOTTIME.
type timeline struct {
	command    string // of the processes
	play       func(context.Context, *scene) error
	title      string
	horizon    time.Duration // the time that the scene takes on a machine that is not busy
	start, now time.Duration
	rows       []*row
	keys       []string  // each has a lane, in this order; nil if each row has one
	away       []stretch // of the API server
	marks      []mark
	columns    [5]string // the headings of steps
	steps      []*step
	checks     []*step // of the whole scene
	note       string  // what is happening
}

// A row shows the processes of one candidate or member, of which there is one at a time.
type row struct {
	name     string
	style    style
	process  *process // the last
	lives    []stretch
	frozen   []stretch
	outlived []stretch // for which its lease outlived it
	killed   []time.Duration
	sessions []*session
}

// A stretch is a piece of time.
type stretch struct{ from, to time.Duration }

// still is the end of a stretch that has not ended.
const still = time.Duration(1<<63 - 1)

func (s *stretch) end(at time.Duration) { s.to = min(s.to, at) }

func (s stretch) overlaps(o stretch) bool { return s.from < o.to && o.from < s.to }

// A session is built from the records of a process.
type session struct {
	row    *row
	key    string
	token  uint64
	worked stretch       // from the first to the last work; to the end, if the lease was not lost before
	ended  time.Duration // by its record, or when its process ended; 0 before
	lost   bool
	why    string
}

// A mark is an event, with the step's key.
type mark struct {
	at         time.Duration
	key, label string // the label is shown where there is room
}

// A step is a row of the table.
type step struct {
	key, event                 string
	state                      state
	who, after, tokens, remark string
}

type state int

const (
	pending state = iota
	running
	passed
	failed
)

// see records what a process did. The error reports an unexpected end.
func (t *timeline) see(n news) error {
	r := t.rows[slices.IndexFunc(t.rows, func(r *row) bool { return r.process == n.process })]
	if n.record == nil {
		r.exit(boottime.Now())
		switch {
		case n.asked == 0:
			return fmt.Errorf("%s ended by itself: %w", r.name, cmp.Or(n.err, errNone))
		case n.asked == syscall.SIGTERM && n.err != nil && !terminated(n.err):
			return fmt.Errorf("%s after SIGTERM: %w", r.name, n.err)
		}
		return nil
	}
	i := slices.IndexFunc(r.sessions, func(s *session) bool {
		return s.token == n.record.Token && s.key == n.record.Key
	})
	if i < 0 {
		i = len(r.sessions)
		r.sessions = append(r.sessions, &session{row: r, key: n.record.Key, token: n.record.Token,
			worked: stretch{n.record.At, n.record.At}})
	}
	s := r.sessions[i]
	if n.record.What == end {
		s.ended, s.lost, s.why = n.record.At, n.record.Lost, n.record.Why
	}
	if !s.lost {
		s.worked.to = n.record.At
	}
	return nil
}

var errNone = errors.New("exit status 0")

// begin records a new process.
func (r *row) begin(p *process, at time.Duration) {
	r.process = p
	r.lives = append(r.lives, stretch{at, still})
}

// exit records the end of the process, and of its sessions that have no record of their end.
func (r *row) exit(at time.Duration) {
	r.process.gone = true
	r.lives[len(r.lives)-1].end(at)
	for _, s := range r.sessions {
		if s.ended == 0 {
			s.ended = at
		}
	}
}

// sessions returns those of a key, or of the Lease, in the order of their fencing tokens.
func (t *timeline) sessions(key string) (all []*session) {
	for _, r := range t.rows {
		for _, s := range r.sessions {
			if s.key == key {
				all = append(all, s)
			}
		}
	}
	slices.SortFunc(all, func(a, b *session) int { return cmp.Compare(a.token, b.token) })
	return all
}

// newest returns the session with the highest fencing token, nil if there was none.
func (t *timeline) newest() *session {
	if all := t.sessions(""); all != nil {
		return all[len(all)-1]
	}
	return nil
}

// leader returns the session that leads, nil if there is none.
func (t *timeline) leader() *session {
	if s := t.newest(); s != nil && s.ended == 0 {
		return s
	}
	return nil
}

// short writes a duration as people say it.
func short(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	default:
		return fmt.Sprintf("%.2f s", d.Seconds())
	}
}
