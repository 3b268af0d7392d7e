package main

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// raceBody is how long the bodies of candidates that race take.
const raceBody = 100 * time.Millisecond

// race measures leasehold's candidates that all want the lease all the time, each over a connection of its own: a
// body takes 100 ms and returns. It measures how many writes all of them try for a term, and for how long nobody
// leads between two. The first terms, in which candidates learn that they are many, are left out.
func (b *bench) race() error {
	r := &relay{bench: b, enough: make(chan struct{})}
	candidates := make([]*candidate, b.racers)
	lease := b.lease("race")
	r.mu.Lock() // no term counts before all are there
	for i := range candidates {
		candidates[i] = b.start(ours, lease, fmt.Sprintf("%s-%d", lease, i), b.timing, func() { r.begin(i) })
		if err := b.sleep(5 * time.Millisecond); err != nil {
			r.mu.Unlock()
			return err
		}
	}
	r.candidates = candidates
	r.mu.Unlock()
	if _, err := receive(b, "last term", r.enough); err != nil {
		return err
	}
	if err := b.halt(candidates...); err != nil {
		return err
	}
	gaps, writes := r.gaps[b.learning:], r.writes[b.learning:]
	what := fmt.Sprintf("%d candidates race: ", b.racers)
	gap := summarize(gaps...)
	late := percentile(slices.Sorted(slices.Values(gaps)), 90)
	of := row{What: what + "writes a term", Leasehold: summarize(writes...), Goal: "p50 <= 30"}
	of.Reached = new(of.Leasehold.P50 <= 30)
	b.report.add(of, nil)
	of = row{What: what + "nobody leads for", Unit: "s", Leasehold: gap, Goal: "p90 <= 100 ms"}
	of.Reached = new(late <= 0.100)
	b.report.add(of, nil)
	b.report.note("race: %d terms after %d; writes a term on average %s; nobody leads for %s at p90, %s at most; "+
		"writes of the first terms: %.0f.",
		len(gaps), b.learning, digits(mean(writes)), format(late, "s"), format(gap.Max, "s"), r.writes[:b.learning])
	return nil
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / math.Max(1, float64(len(values)))
}

// A relay is a lease that goes from one racing candidate to the next.
type relay struct {
	*bench
	enough chan struct{} // closed once enough terms were measured

	mu         sync.Mutex // protects what follows
	candidates []*candidate
	ended      time.Time // the last body
	written    int64     // by all until then
	gaps       []float64 // seconds
	writes     []float64
}

// begin notes that a term of a candidate begins, and ends its body in time.
func (r *relay) begin(candidate int) {
	at := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.candidates[candidate]
	if !r.ended.IsZero() {
		r.gaps = append(r.gaps, at.Sub(r.ended).Seconds())
		r.writes = append(r.writes, float64(r.total()-r.written-1)) // but for the release
		if len(r.gaps) == r.learning+r.terms {
			close(r.enough)
		}
	}
	time.AfterFunc(raceBody, func() {
		r.mu.Lock()
		r.ended, r.written = time.Now(), r.total()
		r.mu.Unlock()
		select {
		case c.yield <- struct{}{}:
		case <-r.ctx.Done():
		case <-time.After(tooLong): // the lease was lost
		}
	})
}

// total returns how many writes all have tried; mu is held.
func (r *relay) total() (n int64) {
	for _, c := range r.candidates {
		n += c.writes.Load()
	}
	return n
}
