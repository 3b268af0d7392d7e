package leasehold

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"

	"github.com/leasehold-go/leasehold/internal/annotation"
	"github.com/leasehold-go/leasehold/internal/rights"
)

// Leases are the Leases of a namespace, as a client for WithClient gives access to them. The methods are those of a
// typed client of client-go. Patch applies patches of the types types.MergePatchType and types.ApplyPatchType. In a
// group (Spread, Join) the client also needs the method List of client-go: without it a member never assigns keys.
type Leases interface {
	Get(ctx context.Context, name string, opts metav1.GetOptions) (*coordinationv1.Lease, error)
	Create(ctx context.Context, lease *coordinationv1.Lease, opts metav1.CreateOptions) (*coordinationv1.Lease, error)
	Patch(
		ctx context.Context, name string, pt types.PatchType, data []byte, opts metav1.PatchOptions,
		subresources ...string,
	) (*coordinationv1.Lease, error)
	Delete(ctx context.Context, name string, opts metav1.DeleteOptions) error
	Watch(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error)
}

// A leaseClient makes a campaign's requests about one Lease. Every write carries the resourceVersion of the
// record it was decided on, so that it fails if anything has happened since.
type leaseClient struct {
	leases       Leases
	namespace    string
	name         string
	identity     string
	duration     time.Duration
	fieldManager string
	labels       map[string]string
	advertise    string
	priority     *int // nil for none
	owner        *metav1.OwnerReference
	kept         map[string]string         // labels that each renewal sets again; nil for none
	report       func() map[string]*string // returns the annotations that a renewal writes; nil for none
	answers      *answerTimes              // how long the requests take

	user     *userCode
	clock    clock
	failures *failureLog
}

// ofMember reports whether the Lease is that of a member of a group.
func (l *leaseClient) ofMember() bool { return l.report != nil }

// newLeaseClient returns a client for the Lease that o names. It has no failures yet.
func newLeaseClient(o *options, client *sharedClient, user *userCode, namespace, identity string) *leaseClient {
	leases := client.leasesIn(namespace)
	if o.hooks.wrap != nil {
		leases = o.hooks.wrap(leases)
	}
	return &leaseClient{
		leases:       leases,
		namespace:    namespace,
		name:         o.name,
		identity:     identity,
		duration:     o.duration,
		fieldManager: o.fieldManager,
		labels:       o.labels,
		advertise:    o.advertise,
		priority:     o.standbyPriority(),
		owner:        o.owner,
		answers:      &client.answers,
		user:         user,
		clock:        o.hooks.clock,
	}
}

// request makes one request, of a kind, that ends within timeout, and logs how it ended where that is news.
func (l *leaseClient) request(
	ctx context.Context, kind string, timeout time.Duration, request func(context.Context) (record, error),
) (record, error) {
	ctx, cancel := context.WithTimeout(ctx, l.clock.wait(timeout))
	defer cancel()
	r, err := ask(ctx, l.user, kind, timeout, request, nil)
	l.failures.record(kind, err)
	return r, err
}

// get reads the Lease. A missing one is the zero record.
func (l *leaseClient) get(ctx context.Context) (record, error) {
	r, err := l.answer(ctx, "get", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return l.leases.Get(ctx, l.name, metav1.GetOptions{})
	})
	if leaseNotFound(err) {
		return record{}, nil
	}
	return r, err
}

// create makes the Lease, held by us since stamp.
func (l *leaseClient) create(ctx context.Context, stamp time.Time) (record, error) {
	return l.answer(ctx, "create", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return l.leases.Create(ctx, l.lease(stamp, 0), metav1.CreateOptions{FieldManager: l.fieldManager})
	})
}

// acquire makes us the holder since stamp, if the Lease still is as r. It applies all fields with
// force, because a field left out would stay as another manager wrote it; the uid makes the server
// refuse, rather than create, a Lease that was deleted.
func (l *leaseClient) acquire(ctx context.Context, r record, stamp time.Time) (record, error) {
	lease := l.lease(stamp, r.transitions+min(1, maxTransitions-r.transitions))
	lease.SetGroupVersionKind(coordinationv1.SchemeGroupVersion.WithKind("Lease"))
	lease.UID, lease.ResourceVersion = r.uid, r.resourceVersion()
	body, err := json.Marshal(lease)
	if err != nil {
		return record{}, err
	}
	return l.answer(ctx, "patch", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return l.leases.Patch(ctx, l.name, types.ApplyPatchType, body,
			metav1.PatchOptions{FieldManager: l.fieldManager, Force: new(true)})
	})
}

// lease returns the Lease as we hold it since stamp.
func (l *leaseClient) lease(stamp time.Time, transitions int32) *coordinationv1.Lease {
	lease := &coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Name: l.name, Namespace: l.namespace, Labels: l.labels,
			Annotations: l.annotations(stamp)},
		Spec: coordinationv1.LeaseSpec{
			HolderIdentity:       &l.identity,
			LeaseDurationSeconds: new(l.seconds()),
			AcquireTime:          &metav1.MicroTime{Time: stamp},
			RenewTime:            &metav1.MicroTime{Time: stamp},
			LeaseTransitions:     &transitions,
		},
	}
	if l.owner != nil {
		lease.OwnerReferences = []metav1.OwnerReference{*l.owner}
	}
	return lease
}

const maxTransitions = 1<<31 - 1 // int32: a Lease that changed hands so often keeps this number

// renew sets the renewal time of the Lease to stamp, and its duration to ours if somebody changed
// it, if the Lease still is as r.
func (l *leaseClient) renew(ctx context.Context, r record, stamp time.Time) (record, error) {
	spec := renewedSpec{RenewTime: stamp.UTC().Format(metav1.RFC3339Micro)}
	if r.duration != l.duration {
		spec.LeaseDurationSeconds = l.seconds()
	}
	var annotations map[string]*string
	if l.report != nil {
		annotations = l.report()
	}
	return l.patch(ctx, r, annotations, spec)
}

// release removes the holder and our annotations from the Lease, if it still is as r. The nulls clear a field, no
// matter who manages it; the number of transitions stays. Where coordinated leader election takes part, the holder is
// "". Others leave the lease for a moment to the successor or, if that is "", to the best standby.
func (l *leaseClient) release(ctx context.Context, r record, successor string) (record, error) {
	change := r.notes().Removal()
	if next := r.nextHolder(successor); next != "" {
		if change == nil {
			change = map[string]*string{}
		}
		change[annotation.Successor] = new(annotation.FormatSuccessor(r.transitions, next))
	}
	free := freed(r)
	return l.patch(ctx, r, change, free)
}

// A renewedSpec is what a renewal changes.
type renewedSpec struct {
	RenewTime            string `json:"renewTime"`
	LeaseDurationSeconds int32  `json:"leaseDurationSeconds,omitempty"`
}

// A freeSpec is what a release changes. It has a null for each field that is nil.
type freeSpec struct {
	HolderIdentity       *string `json:"holderIdentity"`
	LeaseDurationSeconds *int32  `json:"leaseDurationSeconds"`
	AcquireTime          *string `json:"acquireTime"`
	RenewTime            *string `json:"renewTime"`
}

// freed returns what leaves the Lease r without a holder.
func freed(r record) (free freeSpec) {
	if r.strategy || r.preferred != "" {
		free.HolderIdentity = new("") // kube-apiserver 1.36 crashes without it, at its own election
	}
	return free
}

// delete deletes the Lease, if it still is as r. It stays as long as it has finalizers.
func (l *leaseClient) delete(ctx context.Context, r record) error {
	err := l.leases.Delete(ctx, l.name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{
		UID: &r.uid, ResourceVersion: new(r.resourceVersion()),
	}})
	return l.describe("delete", err)
}

// patch changes annotations and, unless it is nil, spec, by a JSON merge patch (RFC 7386), if the Lease still is as r.
func (l *leaseClient) patch(ctx context.Context, r record, annotations map[string]*string, spec any) (record, error) {
	body, err := mergePatch(r, annotations, l.kept, spec)
	if err != nil {
		return record{}, err
	}
	return l.answer(ctx, "patch", func(ctx context.Context) (*coordinationv1.Lease, error) {
		return l.leases.Patch(ctx, l.name, types.MergePatchType, body,
			metav1.PatchOptions{FieldManager: l.fieldManager})
	})
}

// mergePatch returns the patch that changes annotations, labels and, unless it is nil, spec of a Lease that still is as
// r.
func mergePatch(r record, annotations map[string]*string, labels map[string]string, spec any) ([]byte, error) {
	type metadata struct {
		ResourceVersion string             `json:"resourceVersion"`
		Annotations     map[string]*string `json:"annotations,omitempty"`
		Labels          map[string]string  `json:"labels,omitempty"`
	}
	return json.Marshal(struct {
		Metadata metadata `json:"metadata"`
		Spec     any      `json:"spec,omitempty"`
	}{metadata{r.resourceVersion(), annotations, labels}, spec})
}

// watch opens a watch of the Lease for what happens after r or, where there is no Lease, for all
// that there is.
func (l *leaseClient) watch(ctx context.Context, r record) (watch.Interface, error) {
	opts := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("metadata.name", l.name).String()}
	if r.exists() {
		opts.ResourceVersion = r.resourceVersion()
	}
	w, err := l.leases.Watch(ctx, opts)
	return w, l.describe("watch", err)
}

// answer returns the record in the reply to a request.
func (l *leaseClient) answer(
	ctx context.Context, verb string, request func(context.Context) (*coordinationv1.Lease, error),
) (record, error) {
	began := time.Now()
	lease, err := resultOf(request(ctx))
	if answered(err) {
		l.answers.record(time.Since(began))
	}
	if err != nil {
		return record{}, l.describe(verb, err)
	}
	return readRecord(lease)
}

// errNoResult is the error of a client that returns neither a result nor an error.
var errNoResult = errors.New("the client returned neither a result nor an error")

// resultOf returns what a client has returned.
func resultOf[T any](result *T, err error) (*T, error) {
	if result == nil && err == nil {
		err = errNoResult
	}
	return result, err
}

// seconds returns the duration as a Lease has it.
func (l *leaseClient) seconds() int32 { return int32(l.duration / time.Second) }

// describe adds to an API error what its reader needs.
func (l *leaseClient) describe(verb string, err error) error {
	if err == nil {
		return nil
	}
	if rights.Missing(err, verb) {
		name := l.name
		if l.ofMember() {
			name = "" // each member of a group has a new one
		}
		err = rights.Rule(err, l.namespace, name, verb)
	}
	return fmt.Errorf("%s lease %s/%s: %w", verb, l.namespace, l.name, err)
}

// objectMeta returns the metadata of a Lease that has one annotation.
func objectMeta(name, annotation, value string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Annotations: map[string]string{annotation: value}}
}
