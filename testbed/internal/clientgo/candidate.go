// Package clientgo runs a candidate of client-go as its users do.
package clientgo

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// A Candidate is an elector that releases the lease when it ends.
type Candidate struct {
	Client                     coordinationv1client.LeasesGetter
	Namespace, Lease, Identity string
	Duration, Deadline, Period time.Duration

	// Away is how long it stays away after a term. Its users end the process then, which takes a while to be back.
	// Without that it would take the lease again before any other elector looks.
	Away time.Duration
}

// Run calls work once in each term, until ctx ends. A term ends when work returns.
func (c Candidate) Run(ctx context.Context, work func(leading context.Context)) {
	for ctx.Err() == nil {
		term, end := context.WithCancel(ctx)
		leaderelection.RunOrDie(term, leaderelection.LeaderElectionConfig{
			Lock: &resourcelock.LeaseLock{
				LeaseMeta:  metav1.ObjectMeta{Namespace: c.Namespace, Name: c.Lease},
				Client:     c.Client,
				LockConfig: resourcelock.ResourceLockConfig{Identity: c.Identity},
			},
			LeaseDuration: c.Duration, RenewDeadline: c.Deadline, RetryPeriod: c.Period, ReleaseOnCancel: true,
			Callbacks: leaderelection.LeaderCallbacks{
				OnStartedLeading: func(leading context.Context) {
					work(leading)
					end()
				},
				OnStoppedLeading: func() {},
			},
		})
		end()
		select {
		case <-time.After(c.Away):
		case <-ctx.Done():
		}
	}
}
