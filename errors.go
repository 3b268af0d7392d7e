package leasehold

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/shards"
)

// Errors to compare with errors.Is.
var (
	// ErrLost ends a session whose lease was lost. The text says why: the renew deadline passed, another
	// holder took the lease (it is named), the Lease was deleted, its content was changed by hand, the
	// machine slept, or the work was stuck (WithBeat).
	ErrLost = errors.New("lease lost")
	// ErrReleased ends a session whose work is done: the loop body returned, or Release was called.
	ErrReleased = errors.New("lease released")
	// ErrYielded ends a session that makes way for another candidate (WithYield). The text names the candidate or the
	// request.
	ErrYielded = errors.New("lease yielded")
	// ErrMoved ends the session of a key of a group that moves to another member, or that this process no longer knows.
	ErrMoved = errors.New("key moved")
	// ErrHeld is returned by TryAcquire when the lease is held. The text names the holder.
	ErrHeld = errors.New("lease held")
	// ErrExists ends a campaign with CreateNew if the Lease exists.
	ErrExists = errors.New("lease exists")
	// ErrNotFound ends a campaign with UseExisting if the Lease does not exist.
	ErrNotFound = errors.New("lease not found")
)

// A loss is why a lease was lost. It matches ErrLost.
type loss struct {
	reason string // one of the following, for metrics
	text   string
}

const (
	expired = "expired" // not renewed in time
	slept   = "slept"   // not renewed in time because the machine slept
	taken   = "taken"   // another holder has the lease
	deleted = "deleted" // the Lease does not exist any more
	emptied = "emptied" // the holder was removed from the Lease
	edited  = "edited"  // what the holder relies on was changed
	stalled = "stalled" // the work did not call Beat
)

// yielded is the reason of a session that ended with ErrYielded, which is no loss, but counted beside them.
const yielded = "yielded"

// lossReasons are the reasons of losses, as metrics count them.
var lossReasons = [...]string{expired, slept, taken, deleted, emptied, edited, stalled, yielded}

func lostBecause(reason, format string, args ...any) error {
	return &loss{reason, fmt.Sprintf(format, args...)}
}

func (l *loss) Error() string { return ErrLost.Error() + ": " + l.text }
func (l *loss) Unwrap() error { return ErrLost }

// Reason returns why, as metrics count it.
func (l *loss) Reason() string { return l.reason }

// The classes of API errors. What a request's error means is decided here and nowhere else.

// A requestError is an error of a request, whose methods may be the program's. All that is asked of it while a lease
// depends on it was asked once, where the program's code can do no harm.
type requestError struct {
	text   string
	ended  error                  // context.Canceled or context.DeadlineExceeded, if it matches one of them
	status *apierrors.StatusError // nil if it is not the reply of a server
	cause  error                  // only for what the program asks
}

// examined returns err such that it can be asked without the program's code. The caller runs that code now.
func examined(err error) error {
	if _, ours := err.(*loss); err == nil || ours {
		return err
	}
	e := &requestError{text: err.Error(), cause: err}
	var status apierrors.APIStatus
	if errors.As(err, &status) {
		e.status = &apierrors.StatusError{ErrStatus: status.Status()}
	}
	for _, end := range []error{context.DeadlineExceeded, context.Canceled} {
		if errors.Is(err, end) {
			e.ended = end
		}
	}
	return e
}

func (e *requestError) Error() string { return e.text }

// Is makes errors.Is ask the cause, except for our own errors, which a request does not fail with.
func (e *requestError) Is(target error) bool {
	switch target {
	case context.Canceled, context.DeadlineExceeded:
		return target == e.ended
	case ErrLost, ErrReleased, ErrYielded, ErrMoved, ErrHeld, ErrExists, ErrNotFound:
		return false
	}
	return errors.Is(e.cause, target)
}

// As makes errors.As ask the cause, except for what is asked of it here, and for our own types.
func (e *requestError) As(target any) bool {
	switch target := target.(type) {
	case *apierrors.APIStatus:
		if e.status != nil {
			*target = e.status
		}
		return e.status != nil
	case *groupFault, *shards.FormatError:
		return false
	}
	return errors.As(e.cause, target)
}

// outcomeUnknown reports whether a write that failed with err may have taken effect all the same. Only an
// answer of the server that refuses the write rules that out.
func outcomeUnknown(err error) bool {
	var status apierrors.APIStatus
	ok := errors.As(err, &status)
	return !ok || status.Status().Code >= http.StatusInternalServerError ||
		apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse) // from a proxy
}

// answered reports whether err, nil included, is the reply of a server. A write may take effect later all the same.
func answered(err error) bool {
	if err == nil {
		return true
	}
	var status apierrors.APIStatus
	return errors.As(err, &status)
}

// conflicts reports whether a write failed with err because the Lease is not as it was any more.
func conflicts(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err) || leaseNotFound(err)
}

// leaseNotFound reports whether err says that the Lease does not exist. A 404 about something else, or from
// something else than an API server, says nothing about the Lease.
func leaseNotFound(err error) bool {
	var status apierrors.APIStatus
	if !apierrors.IsNotFound(err) || !errors.As(err, &status) {
		return false
	}
	details := status.Status().Details
	return details != nil && details.Kind == leasesResource && details.Name != "" &&
		!apierrors.HasStatusCause(err, metav1.CauseTypeUnexpectedServerResponse)
}

const leasesResource = "leases"

// refused reports whether the server will refuse the request again until somebody changes something.
func refused(err error) bool {
	return apierrors.IsForbidden(err) || apierrors.IsInvalid(err) || apierrors.IsMethodNotSupported(err)
}

// versionExpired reports whether a watch cannot begin where it was asked to, but can begin elsewhere.
func versionExpired(err error) bool {
	return apierrors.IsResourceExpired(err) || apierrors.IsGone(err) ||
		apierrors.HasStatusCause(err, metav1.CauseTypeResourceVersionTooLarge)
}

// watchError returns the error that a watch event carries.
func watchError(event watch.Event) error {
	status, ok := event.Object.(*metav1.Status)
	if !ok || status == nil {
		return fmt.Errorf("an error event without a Status: %v", event.Object)
	}
	return apierrors.FromObject(status)
}

// retryAfter returns the pause that the server asked for with err, or 0.
func retryAfter(err error) time.Duration {
	seconds, _ := apierrors.SuggestsClientDelay(err)
	return time.Duration(max(0, min(seconds, 3600))) * time.Second
}
