package leasehold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	applycoordinationv1 "k8s.io/client-go/applyconfigurations/coordination/v1"
	applymetav1 "k8s.io/client-go/applyconfigurations/meta/v1"
	coordinationv1client "k8s.io/client-go/kubernetes/typed/coordination/v1"
)

// api makes a candidate's requests about one Lease. Every write carries the resourceVersion of the
// record it was decided on, so that it fails if anything has happened since.
type api struct {
	leases       coordinationv1client.LeaseInterface
	namespace    string
	name         string
	identity     string
	duration     time.Duration
	fieldManager string
	labels       map[string]string
	owner        *metav1.OwnerReference
	answers      *answerTimes // how long the requests take
}

// get reads the Lease. A missing one is the zero record.
func (a *api) get(ctx context.Context) (record, error) {
	r, err := a.answer(ctx, "get", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return a.leases.Get(ctx, a.name, metav1.GetOptions{})
	})
	if apierrors.IsNotFound(err) {
		return record{}, nil
	}
	return r, err
}

// create makes the Lease, held by us since stamp.
func (a *api) create(ctx context.Context, stamp time.Time) (record, error) {
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: a.name, Namespace: a.namespace, Labels: a.labels},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       &a.identity,
			LeaseDurationSeconds: new(a.seconds()),
			AcquireTime:          &metav1.MicroTime{Time: stamp},
			RenewTime:            &metav1.MicroTime{Time: stamp},
			LeaseTransitions:     new(int32(0)),
		},
	}
	if a.owner != nil {
		lease.OwnerReferences = []metav1.OwnerReference{*a.owner}
	}
	return a.answer(ctx, "create", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return a.leases.Create(ctx, lease, metav1.CreateOptions{FieldManager: a.fieldManager})
	})
}

// acquire makes us the holder since stamp, if the Lease still is as r. It applies all fields with
// force, because a field left out would stay as another manager wrote it; the uid makes the server
// refuse, rather than create, a Lease that was deleted.
func (a *api) acquire(ctx context.Context, r record, stamp time.Time) (record, error) {
	lease := applycoordinationv1.Lease(a.name, a.namespace).
		WithUID(r.uid).
		WithResourceVersion(r.resourceVersion()).
		WithLabels(a.labels).
		WithSpec(applycoordinationv1.LeaseSpec().
			WithHolderIdentity(a.identity).
			WithLeaseDurationSeconds(a.seconds()).
			WithAcquireTime(metav1.MicroTime{Time: stamp}).
			WithRenewTime(metav1.MicroTime{Time: stamp}).
			WithLeaseTransitions(r.transitions + min(1, maxTransitions-r.transitions)))
	if o := a.owner; o != nil {
		lease.WithOwnerReferences(&applymetav1.OwnerReferenceApplyConfiguration{
			APIVersion: &o.APIVersion, Kind: &o.Kind, Name: &o.Name, UID: &o.UID,
			Controller: o.Controller, BlockOwnerDeletion: o.BlockOwnerDeletion,
		})
	}
	return a.answer(ctx, "patch", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return a.leases.Apply(ctx, lease, metav1.ApplyOptions{FieldManager: a.fieldManager, Force: true})
	})
}

const maxTransitions = 1<<31 - 1 // int32: a Lease that changed hands so often keeps this number

// renew sets the renewal time of the Lease to stamp, and its duration to ours if somebody changed
// it, if the Lease still is as r.
func (a *api) renew(ctx context.Context, r record, stamp time.Time) (record, error) {
	spec := renewedSpec{RenewTime: stamp.UTC().Format(metav1.RFC3339Micro)}
	if r.duration != a.duration {
		spec.LeaseDurationSeconds = a.seconds()
	}
	return a.patch(ctx, r, spec)
}

// release leaves the Lease without a holder, if it still is as r. The nulls clear a field whoever
// manages it; the number of transitions stays.
func (a *api) release(ctx context.Context, r record) (record, error) {
	return a.patch(ctx, r, freeSpec{})
}

// A renewedSpec is what a renewal changes.
type renewedSpec struct {
	RenewTime            string `json:"renewTime"`
	LeaseDurationSeconds int32  `json:"leaseDurationSeconds,omitempty"`
}

// A freeSpec is what a release changes: it has a null for each field.
type freeSpec struct {
	HolderIdentity       *string `json:"holderIdentity"`
	LeaseDurationSeconds *int32  `json:"leaseDurationSeconds"`
	AcquireTime          *string `json:"acquireTime"`
	RenewTime            *string `json:"renewTime"`
}

// remove deletes the Lease, if it still is as r.
func (a *api) remove(ctx context.Context, r record) error {
	err := a.leases.Delete(ctx, a.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{
		UID: &r.uid, ResourceVersion: new(r.resourceVersion()),
	}})
	return a.explain("delete", err, 0)
}

// patch changes spec, by a JSON merge patch (RFC 7386), if the Lease still is as r.
func (a *api) patch(ctx context.Context, r record, spec any) (record, error) {
	type precondition struct {
		ResourceVersion string `json:"resourceVersion"`
	}
	body, err := json.Marshal(struct {
		Metadata precondition `json:"metadata"`
		Spec     any          `json:"spec"`
	}{precondition{r.resourceVersion()}, spec})
	if err != nil {
		return record{}, err
	}
	return a.answer(ctx, "patch", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return a.leases.Patch(ctx, a.name, types.MergePatchType, body, metav1.PatchOptions{FieldManager: a.fieldManager})
	})
}

// watch opens a watch of the Lease for what happens after r or, where there is no Lease, for all
// that there is.
func (a *api) watch(ctx context.Context, r record) (watch.Interface, error) {
	opts := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", a.name).String()}
	if r.exists() {
		opts.ResourceVersion = r.resourceVersion()
	}
	var asked time.Duration
	w, err := a.leases.Watch(context.WithValue(ctx, askedKey{}, &asked), opts)
	return w, a.explain("watch", err, asked)
}

// answer returns the record in the reply to a request.
func (a *api) answer(ctx context.Context, verb string, request func(context.Context) (*coordinationv1.Lease, error)) (record, error) {
	var asked time.Duration
	began := time.Now()
	lease, err := request(context.WithValue(ctx, askedKey{}, &asked))
	if err == nil || apierrors.ReasonForError(err) != metav1.StatusReasonUnknown {
		a.answers.answered(time.Since(began))
	}
	if err != nil {
		return record{}, a.explain(verb, err, asked)
	}
	return readRecord(lease)
}

// seconds returns the duration as a Lease has it.
func (a *api) seconds() int32 { return int32(a.duration / time.Second) }

// explain adds to an API error what its reader needs.
func (a *api) explain(verb string, err error, asked time.Duration) error {
	switch {
	case err == nil:
		return nil
	case apierrors.IsForbidden(err):
		names := fmt.Sprintf(" resourceNames: [%q],", a.name)
		if verb == "create" {
			names = "" // RBAC cannot restrict create to a name
		}
		err = fmt.Errorf("%w; a Role in namespace %q needs the rule {apiGroups: [%q], resources: [%q],%s verbs: [%q]}",
			err, a.namespace, coordinationv1.GroupName, "leases", names, verb)
	}
	return pausedBy(fmt.Errorf("%s lease %s/%s: %w", verb, a.namespace, a.name, err), asked)
}

// pausedBy returns err with the pause that the server asked for, if it did.
func pausedBy(err error, asked time.Duration) error {
	if asked > 0 {
		return &askedError{err, asked}
	}
	return err
}

// An askedError is a failure after which the server asked for a pause.
type askedError struct {
	error
	pause time.Duration
}

func (e *askedError) Unwrap() error { return e.error }

// retryAfter returns the pause that the server asked for with err, or 0.
func retryAfter(err error) time.Duration {
	var asked *askedError
	if errors.As(err, &asked) {
		return asked.pause
	}
	if seconds, ok := apierrors.SuggestsClientDelay(err); ok {
		return time.Duration(seconds) * time.Second
	}
	return 0
}

// askedKey finds in a request's context where to note the pause that its reply asks for.
type askedKey struct{}

// noRetry keeps client-go from repeating requests by itself: it answers a Retry-After up to ten
// times, out of sight of the budget and of what a write's outcome is known to be. The pause asked
// for goes to the request's context instead.
type noRetry struct{ next http.RoundTripper }

func (n noRetry) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := n.next.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if asked, ok := req.Context().Value(askedKey{}).(*time.Duration); ok {
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil {
			*asked = time.Duration(max(0, min(seconds, 3600))) * time.Second
		}
		resp.Header.Del("Retry-After")
	}
	return resp, nil
}
