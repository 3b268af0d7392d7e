package leasehold

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// outages logs when requests of a kind begin to fail and when they work again: two lines for an
// outage, however many requests it costs.
type outages struct {
	log    *slog.Logger
	ledger *ledger

	mu    sync.Mutex
	since map[string]time.Time // when a kind of request began to fail; protected by mu
}

// note takes note of how a request of a kind ended. That the Lease is not as it was expected to be
// is an answer, not an outage.
func (o *outages) note(kind string, err error) {
	answered := apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) ||
		apierrors.IsNotFound(err) && kind != "acquire" // where it is the namespace that is missing
	if answered {
		err = nil
	}
	if errors.Is(err, context.Canceled) {
		return
	}
	if err != nil {
		o.ledger.failed(err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	since, failing := o.since[kind]
	switch {
	case err == nil && failing:
		delete(o.since, kind)
		o.log.Info("the API server answers again", "request", kind, "after", time.Since(since))
	case err != nil && !failing:
		if o.since == nil {
			o.since = map[string]time.Time{}
		}
		o.since[kind] = time.Now()
		o.log.Warn("the API server does not do as asked; trying again", "request", kind, "error", err)
	case err != nil:
		o.log.Debug("still failing", "request", kind, "error", err)
	}
}
