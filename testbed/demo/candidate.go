package main

import (
	"context"
	"time"

	"github.com/leasehold-go/leasehold"
	"github.com/leasehold-go/leasehold/testbed/internal/boottime"
)

// campaign is all that a program needs to work only while it holds a lease; a candidate is this loop and nothing more.
// It finds the API server as kubectl does, by $KUBECONFIG.
func campaign(ctx context.Context, work func(leasehold.Session) error) error {
	var err error
	for s := range leasehold.Sessions(ctx,
		leasehold.WithLease(leaseName),
		leasehold.WithDuration(leaseDuration),
		leasehold.WithError(&err),
	) {
		if err := work(s); err != nil {
			return err
		}
	}
	return err
}

const (
	leaseName     = "demo"
	leaseDuration = 5 * time.Second
	renewDeadline = leaseDuration * 8 / 10 // the library's default
)

// pace is how often a leader works.
const pace = 10 * time.Millisecond

// writeJournal is the work: to write into a journal that may have only one writer at a time. It returns when the
// session has ended.
func (j *journal) writeJournal(s leasehold.Session) error {
	token, what := s.FencingToken(), begin
	for {
		at := boottime.Now() // read before Err: a session that is alive after at was alive at at
		if s.Err() != nil {
			break
		}
		if err := j.write(record{At: at, Token: token, What: what}); err != nil {
			return err
		}
		what = work
		select {
		case <-s.Done():
		case <-time.After(pace):
		}
	}
	return j.write(record{At: boottime.Now(), Token: token, What: end, Lost: lost(s.Err()), Why: s.Err().Error()})
}
