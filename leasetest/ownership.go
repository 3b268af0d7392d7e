package leasetest

import (
	"cmp"
	"encoding/json"
	"slices"
	"strings"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/client-go/applyconfigurations"
)

// Package managedfields, which the API server uses too, decides field ownership: it is right by definition and takes
// 200 us. Most writes of a lease change a few plain fields of its spec, for which ownership is arithmetic on sets of
// five. The type owners does that arithmetic, and reports when it cannot. A test compares the two over random
// histories.

var (
	scheme = func() *runtime.Scheme {
		s := runtime.NewScheme()
		if err := coordinationv1.AddToScheme(s); err != nil {
			panic(err)
		}
		return s
	}()
	leaseGVK = coordinationv1.SchemeGroupVersion.WithKind("Lease")

	// Parsing the schema of all APIs takes 100 ms, once per process.
	fieldManager = sync.OnceValue(func() *managedfields.FieldManager {
		m, err := managedfields.NewDefaultFieldManager(
			applyconfigurations.NewTypeConverter(scheme), scheme, scheme, scheme, leaseGVK,
			leaseGVK.GroupVersion(), "", nil)
		if err != nil {
			panic(err)
		}
		return m
	})
)

// own returns the new state with the managedFields of an update by manager.
func own(live, lease *coordinationv1.Lease, manager string) *coordinationv1.Lease {
	return owned(fieldManager().UpdateNoErrors(withKind(live), withKind(lease), manager))
}

// ownApplied returns the live state with the applied configuration merged into it.
func ownApplied(
	live *coordinationv1.Lease, applied map[string]any, manager string, force bool,
) (*coordinationv1.Lease, error) {
	obj, err := fieldManager().Apply(withKind(live), &unstructured.Unstructured{Object: applied}, manager, force)
	if err != nil {
		return nil, err
	}
	return owned(obj), nil
}

func withKind(l *coordinationv1.Lease) *coordinationv1.Lease {
	l = l.DeepCopy()
	l.SetGroupVersionKind(leaseGVK)
	return l
}

func owned(obj runtime.Object) *coordinationv1.Lease {
	lease := obj.(*coordinationv1.Lease)
	normalize(lease)
	for i := range lease.ManagedFields {
		if t := lease.ManagedFields[i].Time; t != nil {
			t.Time = t.Truncate(time.Second).Local()
		}
	}
	return lease
}

// specFields is a set of plain fields of a lease's spec.
type specFields uint8

const (
	acquireTime specFields = 1 << iota
	holderIdentity
	leaseDurationSeconds
	leaseTransitions
	renewTime
)

// specFieldNames are sorted by name, as in FieldsV1, and by bit.
var specFieldNames = []string{"acquireTime", "holderIdentity", "leaseDurationSeconds", "leaseTransitions", "renewTime"}

func specField(name string) (specFields, bool) {
	i := slices.Index(specFieldNames, name)
	return 1 << max(i, 0), i >= 0
}

// fieldsV1 is the set as the value of f:spec, for every set.
var fieldsV1 = func() (text [1 << 5]string) {
	for set := range text {
		var names []string
		for i, name := range specFieldNames {
			if set&(1<<i) != 0 {
				names = append(names, `"f:`+name+`":{}`)
			}
		}
		text[set] = "{" + strings.Join(names, ",") + "}"
	}
	return text
}()

// owner is one entry of managedFields.
type owner struct {
	metav1.ManagedFieldsEntry
	spec        specFields
	rest        string                     // of FieldsV1: what it has before f:spec, `"f:metadata":{…}`
	annotations map[string]json.RawMessage // those in rest: {} for `f:` and the name
}

// owners is managedFields as far as plain fields of the spec change.
type owners struct {
	entries []owner
	simple  bool // nothing in them is beyond this type
}

// maxUpdaters is how many managers of updates the server keeps apart.
const maxUpdaters = 10

func decodeOwners(fields []metav1.ManagedFieldsEntry) owners {
	o := owners{entries: make([]owner, 0, len(fields))}
	simple := true
	for _, f := range fields {
		e, ok := decodeOwner(f)
		o.entries = append(o.entries, e)
		simple = simple && ok
	}
	o.simple = simple && o.few()
	return o
}

// few reports whether the server treats the entries one by one: it merges the oldest of many updaters, and does not
// track a lease that has none.
func (o owners) few() bool { return 0 < len(o.entries) && len(o.entries) < maxUpdaters }

func decodeOwner(f metav1.ManagedFieldsEntry) (owner, bool) {
	o := owner{ManagedFieldsEntry: f}
	if f.APIVersion != leaseGVK.GroupVersion().String() || f.Subresource != "" || f.FieldsV1 == nil {
		return o, false
	}
	var set map[string]json.RawMessage
	if json.Unmarshal(f.FieldsV1.GetRawBytes(), &set) != nil {
		return o, false
	}
	if m, ok := set["f:metadata"]; ok {
		o.rest = `"f:metadata":` + string(m)
		var fields map[string]json.RawMessage
		if json.Unmarshal(m, &fields) != nil {
			return o, false
		}
		if a, ok := fields["f:annotations"]; ok && json.Unmarshal(a, &o.annotations) != nil {
			return o, false
		}
	}
	var spec map[string]json.RawMessage
	if s, ok := set["f:spec"]; ok && (json.Unmarshal(s, &spec) != nil || len(spec) == 0) {
		return o, false // an empty one stands for the spec as such
	}
	for key := range spec {
		name, _ := strings.CutPrefix(key, "f:")
		field, ok := specField(name)
		if !ok {
			return o, false
		}
		o.spec |= field
	}
	delete(set, "f:metadata")
	delete(set, "f:spec")
	return o, len(set) == 0
}

// encode returns the entries as managedFields has them.
func (o owners) encode() []metav1.ManagedFieldsEntry {
	if len(o.entries) == 0 {
		return nil
	}
	fields := make([]metav1.ManagedFieldsEntry, len(o.entries))
	for i, e := range o.entries {
		fields[i] = e.ManagedFieldsEntry
	}
	return fields
}

// annotates reports whether an update by manager that gives annotations other values leaves them to the same owners: it
// owns them by updates, and nobody else does.
func (o owners) annotates(manager string, annotations []string) bool {
	for _, e := range o.entries {
		for _, name := range annotations {
			if _, owns := e.annotations["f:"+name]; owns != e.is(manager, metav1.ManagedFieldsOperationUpdate) {
				return false
			}
		}
	}
	return o.find(manager, metav1.ManagedFieldsOperationUpdate).Manager != ""
}

// update returns the owners after manager updates the fields in set and removes those in gone. If annotated, it also
// gave other values to annotations, for which annotates holds.
func (o owners) update(manager string, set, gone specFields, annotated bool) owners {
	next := o.without(func(owner) specFields { return set | gone })
	if set != 0 || annotated {
		e := next.entry(manager, metav1.ManagedFieldsOperationUpdate)
		*e = e.own(e.spec | set).now()
	}
	return next.sorted()
}

// apply returns the owners after manager applies the fields in set by force. The fields in changed get new values, and
// those in gone are removed.
func (o owners) apply(manager string, set, changed, gone specFields) owners {
	next := o.without(func(e owner) specFields {
		if e.is(manager, metav1.ManagedFieldsOperationApply) {
			return 0
		}
		return changed
	})
	e := next.entry(manager, metav1.ManagedFieldsOperationApply)
	*e = e.own(set)
	if changed != 0 || gone != 0 {
		*e = e.now() // the server leaves the time alone, even if there is none, when only ownership changes
	}
	return next.sorted()
}

func (e owner) is(manager string, op metav1.ManagedFieldsOperationType) bool {
	return e.Manager == manager && e.Operation == op
}

// find returns the manager's entry, a zero one if it has none.
func (o owners) find(manager string, op metav1.ManagedFieldsOperationType) owner {
	i := slices.IndexFunc(o.entries, func(e owner) bool { return e.is(manager, op) })
	if i < 0 {
		return owner{}
	}
	return o.entries[i]
}

// others returns the fields that entries other than the manager's own.
func (o owners) others(manager string, op metav1.ManagedFieldsOperationType) (set specFields) {
	for _, e := range o.entries {
		if !e.is(manager, op) {
			set |= e.spec
		}
	}
	return set
}

func (o owners) without(fields func(owner) specFields) owners {
	next := owners{entries: make([]owner, 0, len(o.entries)+1)}
	for _, e := range o.entries {
		e = e.own(e.spec &^ fields(e))
		if e.spec != 0 || e.rest != "" {
			next.entries = append(next.entries, e)
		}
	}
	return next
}

// entry returns the manager's entry, a new one if it has none.
func (o *owners) entry(manager string, op metav1.ManagedFieldsOperationType) *owner {
	i := slices.IndexFunc(o.entries, func(e owner) bool { return e.is(manager, op) })
	if i < 0 {
		i = len(o.entries)
		o.entries = append(o.entries, owner{ManagedFieldsEntry: metav1.ManagedFieldsEntry{
			Manager: manager, Operation: op, APIVersion: leaseGVK.GroupVersion().String(), FieldsType: "FieldsV1",
		}})
	}
	return &o.entries[i]
}

// now returns the entry with the present time.
func (e owner) now() owner {
	at := now()
	e.Time = &at
	return e
}

// own returns the entry with that set in place of its own.
func (e owner) own(set specFields) owner {
	if set == e.spec && e.FieldsV1 != nil {
		return e
	}
	e.spec = set
	text := e.rest
	if set != 0 {
		if text != "" {
			text += ","
		}
		text += `"f:spec":` + fieldsV1[set]
	}
	e.FieldsV1 = metav1.NewFieldsV1("{" + text + "}")
	return e
}

// sorted returns the entries in the server's order, and decides whether arithmetic suffices for the next write too.
func (o owners) sorted() owners {
	o.simple = o.few()
	slices.SortFunc(o.entries, func(a, b owner) int {
		return cmp.Or(
			cmp.Compare(a.Operation, b.Operation),
			cmp.Compare(a.seconds(), b.seconds()),
			cmp.Compare(a.Manager, b.Manager))
	})
	return o
}

func (e owner) seconds() int64 {
	if e.Time == nil {
		return 0
	}
	return e.Time.Unix()
}

// compareSpecs returns the fields that an update from a to b sets and removes; ok is false if it changes other fields
// too.
func compareSpecs(a, b *coordinationv1.LeaseSpec) (set, gone specFields, ok bool) {
	compare := func(f specFields, inA, inB, equal bool) {
		switch {
		case inB && !equal:
			set |= f
		case inA && !inB:
			gone |= f
		}
	}
	compare(acquireTime, a.AcquireTime != nil, b.AcquireTime != nil, a.AcquireTime.Equal(b.AcquireTime))
	compare(renewTime, a.RenewTime != nil, b.RenewTime != nil, a.RenewTime.Equal(b.RenewTime))
	compare(holderIdentity, a.HolderIdentity != nil, b.HolderIdentity != nil, same(a.HolderIdentity, b.HolderIdentity))
	compare(leaseDurationSeconds, a.LeaseDurationSeconds != nil, b.LeaseDurationSeconds != nil,
		same(a.LeaseDurationSeconds, b.LeaseDurationSeconds))
	compare(leaseTransitions, a.LeaseTransitions != nil, b.LeaseTransitions != nil,
		same(a.LeaseTransitions, b.LeaseTransitions))
	return set, gone, same(a.Strategy, b.Strategy) && same(a.PreferredHolder, b.PreferredHolder)
}

func same[T comparable](a, b *T) bool {
	return a == b || a != nil && b != nil && *a == *b
}
