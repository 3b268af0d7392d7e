package leasehold

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/watch"
)

// openWatch opens a watch in bounded time.
func openWatch(
	ctx context.Context, user *userCode, c clock, timeout time.Duration,
	open func(context.Context) (watch.Interface, error),
) (watch.Interface, error) {
	ctx, cancel := context.WithCancel(ctx) // it goes on as long as the watch
	timer := time.AfterFunc(c.wait(timeout), cancel)
	w, err := ask(ctx, user, "watch", timeout, open, watch.Interface.Stop)
	if !timer.Stop() {
		if err == nil {
			w.Stop()
		}
		err = fmt.Errorf("opening a watch took longer than %v", timeout)
	}
	if err != nil {
		cancel()
		return nil, err
	}
	return cancelledWatch{w, cancel}, nil
}

// A cancelledWatch ends its request when it is stopped.
type cancelledWatch struct {
	watch.Interface
	cancel context.CancelFunc
}

func (w cancelledWatch) Stop() {
	w.Interface.Stop()
	w.cancel()
}

// refusedWatchPause returns for how long a watch is not tried again that was refused.
func refusedWatchPause(interval time.Duration) time.Duration {
	return min(100*min(interval, time.Hour), time.Hour)
}
