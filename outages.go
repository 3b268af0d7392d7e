package leasehold

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// outages logs when the API server begins to fail and when it does as asked again: two lines for an
// outage, whatever requests it costs. What the server refuses, for want of a right say, is told for
// each kind of request, because each has a remedy of its own.
type outages struct {
	log    *slog.Logger
	outcry *outcry
	ledger *ledger
	recent time.Duration // longer than between two tries of a request

	mu      sync.Mutex           // protects following
	failing map[string]time.Time // when the kinds of requests that fail last did; made when it is used
	level   slog.Level           // at which the outage is told of
	since   time.Time            // when the first of them began to
	refused map[string]time.Time // since when kinds of requests are refused; made when it is used
}

func newOutages(log *slog.Logger, outcry *outcry, recent time.Duration) *outages {
	return &outages{log: log, outcry: outcry, ledger: &ledger{}, recent: recent}
}

// An outcry is how many campaigns of a lane meet with an outage now. When it is that of many leases,
// the first few to do so say it for all; the others only for debugging.
type outcry struct{ voices atomic.Int32 }

// join returns at what level to tell of an outage, until quit is called.
func (c *outcry) join() slog.Level {
	if c.voices.Add(1) > fewLeases {
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

func (c *outcry) quit() { c.voices.Add(-1) }

// leave notes that no more requests are made.
func (o *outages) leave() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.failing) > 0 {
		clear(o.failing)
		o.outcry.quit()
	}
}

// note takes note of how a request of a kind ended. That the Lease is not as it was expected to be
// is an answer, not an outage.
func (o *outages) note(kind string, err error) {
	switch {
	case err == nil:
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err),
		apierrors.IsNotFound(err) && kind != "acquire": // where it is the namespace that is missing
		err = nil
	case errors.Is(err, context.Canceled), errors.Is(err, ErrLost):
		return // it was us who ended it
	case err != nil:
		o.ledger.failed(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	since, known := o.refused[kind]
	switch {
	case err != nil && refused(err):
		if !known {
			if o.refused == nil {
				o.refused = map[string]time.Time{}
			}
			o.refused[kind] = time.Now()
			o.log.Warn("the API server refuses; trying again", "request", kind, "error", err)
		}
		o.works(kind) // it answers
	case err != nil:
		o.fails(kind, err)
	default:
		if known {
			delete(o.refused, kind)
			o.log.Info("the API server refuses no longer", "request", kind, "after", time.Since(since))
		}
		o.works(kind)
	}
}

// fails notes that requests of a kind fail. The caller holds mu.
func (o *outages) fails(kind string, err error) {
	if len(o.failing) == 0 {
		o.since, o.level = time.Now(), o.outcry.join()
		o.log.Log(context.Background(), o.level, "the API server does not do as asked; trying again", "request", kind, "error", err)
	} else {
		o.log.Debug("still failing", "request", kind, "error", err)
	}
	if o.failing == nil {
		o.failing = map[string]time.Time{}
	}
	o.failing[kind] = time.Now()
}

// works notes that requests of a kind are answered. The outage is over unless those of another kind
// still fail. The caller holds mu.
func (o *outages) works(kind string) {
	if len(o.failing) == 0 {
		return
	}
	delete(o.failing, kind)
	for _, last := range o.failing {
		if time.Since(last) < o.recent {
			return
		}
	}
	clear(o.failing) // what is not tried any more does not fail any more
	o.outcry.quit()
	o.log.Log(context.Background(), min(o.level, slog.LevelInfo), "the API server does as asked again", "after", time.Since(o.since))
}
