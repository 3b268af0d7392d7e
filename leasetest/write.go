package leasetest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// leasesKind has the resource in place of the kind, as some of the server's errors do.
var leasesKind = schema.GroupKind{Group: leasesResource.Group, Kind: leasesResource.Resource}

// writer describes a write: its client, field manager and options.
type writer struct {
	client  string
	manager string
	dryRun  bool
}

// draft is a new state of a lease on its way to the store.
type draft struct {
	lease       *coordinationv1.Lease
	sameMeta    bool     // the metadata that a client may change is that of the live lease, but for annotations
	annotations []string // those that have another value
	applied     bool     // managedFields is set
	owners      owners   // managedFields decoded; only if applied by arithmetic
}

func (s *Server) create(
	w writer, namespace string, lease *coordinationv1.Lease, opts metav1.CreateOptions,
) (*coordinationv1.Lease, error) {
	if errs := validation.ValidateCreateOptions(&opts); len(errs) > 0 {
		return nil, invalidOptions("CreateOptions", errs)
	}
	if lease.GenerateName != "" && lease.Name == "" {
		return nil, apierrors.NewBadRequest("leasetest does not generate names: give the Lease one")
	}
	normalize(lease)
	lease.UID, lease.CreationTimestamp = "", metav1.Time{}
	lease.DeletionTimestamp, lease.DeletionGracePeriodSeconds = nil, nil
	if err := checkNamespace(lease, namespace); err != nil {
		return nil, err
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	key := types.NamespacedName{Namespace: namespace, Name: lease.Name}
	d, err := s.prepareNew(w, draft{lease: lease})
	if err != nil {
		return nil, err
	}
	if rv, err := objectRV(lease); err == nil && rv != 0 {
		return nil, statusUnknown("resourceVersion should not be set on objects to be created")
	}
	if s.leases[key] != nil {
		return nil, apierrors.NewAlreadyExists(leasesResource, lease.Name)
	}
	return s.commit(w, key, d), nil
}

func (s *Server) replace(
	w writer, key types.NamespacedName, lease *coordinationv1.Lease, opts metav1.UpdateOptions,
) (*coordinationv1.Lease, error) {
	if errs := validation.ValidateUpdateOptions(&opts); len(errs) > 0 {
		return nil, invalidOptions("UpdateOptions", errs)
	}
	normalize(lease)
	if err := checkNamespace(lease, key.Namespace); err != nil {
		return nil, err
	}
	return s.update(w, key, lease.UID, func(r *record) (draft, error) {
		return draft{lease: lease, sameMeta: sameMetadata(&lease.ObjectMeta, &r.lease.ObjectMeta) &&
			(lease.ManagedFields == nil || sameFields(lease.ManagedFields, r.lease.ManagedFields, true))}, nil
	})
}

// update changes a lease: it makes the new state from the live one, compares resourceVersions, validates, and stores. A
// lease that does not exist is created, unless make returns an error.
func (s *Server) update(
	w writer, key types.NamespacedName, uid types.UID, makeDraft func(*record) (draft, error),
) (*coordinationv1.Lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.leases[key]
	exists := r != nil
	if !exists {
		r = &record{lease: &coordinationv1.Lease{}}
	}
	live := r.lease
	if uid != "" && uid != live.UID {
		return nil, apierrors.NewConflict(leasesResource, key.Name, fmt.Errorf(
			"StorageError: invalid object, Code: 4, Key: /registry/leases/%s, ResourceVersion: 0, "+
				"AdditionalErrorMsg: Precondition failed: UID in precondition: %v, UID in object meta: %v",
			key, uid, live.UID))
	}

	d, err := makeDraft(r)
	if err != nil {
		return nil, err
	}
	lease := d.lease
	if err := checkIdentity(key, lease, exists); err != nil {
		return nil, err
	}
	rv, err := objectRV(lease)
	if err != nil {
		return nil, statusUnknown(err.Error())
	}
	if !exists {
		d, err := s.prepareNew(w, d)
		if err != nil {
			return nil, err
		}
		return s.commit(w, key, d), nil
	}
	switch formatRV(rv) {
	case "0":
		return nil, apierrors.NewInvalid(leasesKind, key.Name, field.ErrorList{
			field.Invalid(metadataPath.Child("resourceVersion"), rv, "must be specified for an update"),
		})
	case live.ResourceVersion:
	default:
		return nil, staleRV(key)
	}

	annotated := len(d.annotations) > 0
	if !d.applied && d.sameMeta && r.owners.simple && (!annotated || r.owners.annotates(w.manager, d.annotations)) {
		if set, gone, ok := compareSpecs(&live.Spec, &lease.Spec); ok {
			if set == 0 && gone == 0 && !annotated {
				return live, nil
			}
			d.applied = true
			d.owners = r.owners.update(w.manager, set, gone, annotated)
			lease.ManagedFields = d.owners.encode()
		}
	}
	if !d.applied {
		d.lease = own(live, lease, w.manager)
		lease = d.lease
	}
	dropGated(lease, live)
	keepSystemFields(lease, live)
	if err := validateChange(lease, live, !d.sameMeta || annotated || !r.valid); err != nil {
		return nil, err
	}
	if sameLease(lease, live) {
		return live, nil
	}
	if live.DeletionTimestamp != nil && len(lease.Finalizers) == 0 {
		if !w.dryRun {
			s.remove(key, lease, w.client)
		}
		return lease, nil
	}
	return s.commit(w, key, d), nil
}

// prepareNew fills in what the server gives a new lease, and validates it.
func (s *Server) prepareNew(w writer, d draft) (draft, error) {
	lease := d.lease
	if !d.applied {
		lease = own(&coordinationv1.Lease{}, lease, w.manager)
		d.lease = lease
	}
	lease.UID, lease.CreationTimestamp = s.newUID(), now()
	dropGated(lease, &coordinationv1.Lease{})
	return d, validateNew(lease)
}

func (s *Server) commit(w writer, key types.NamespacedName, d draft) *coordinationv1.Lease {
	if w.dryRun {
		return d.lease
	}
	return s.store(key, d.lease, d.owners, true, w.client)
}

func (s *Server) delete(w writer, key types.NamespacedName, opts metav1.DeleteOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.deleteLocked(w, key, opts)
}

func (s *Server) deleteLocked(w writer, key types.NamespacedName, opts metav1.DeleteOptions) error {
	r := s.leases[key]
	if r == nil {
		return apierrors.NewNotFound(leasesResource, key.Name)
	}
	live := r.lease
	if errs := validation.ValidateDeleteOptions(&opts); len(errs) > 0 {
		return invalidOptions("DeleteOptions", errs)
	}
	if p := opts.Preconditions; p != nil {
		// The server's message has the kind in place of the resource here.
		kind := schema.GroupResource{Group: leaseGVK.Group, Resource: leaseGVK.Kind}
		if p.UID != nil && *p.UID != live.UID {
			return apierrors.NewConflict(kind, key.Name, fmt.Errorf(
				"the UID in the precondition (%s) does not match the UID in record (%s). The object might have been "+
					"deleted and then recreated", *p.UID, live.UID))
		}
		if p.ResourceVersion != nil && *p.ResourceVersion != live.ResourceVersion {
			return apierrors.NewConflict(kind, key.Name, fmt.Errorf(
				"the ResourceVersion in the precondition (%s) does not match the ResourceVersion in record (%s). The "+
					"object might have been modified", *p.ResourceVersion, live.ResourceVersion))
		}
	}
	switch {
	case w.dryRun:
	case len(live.Finalizers) == 0:
		s.remove(key, live, w.client)
	case live.DeletionTimestamp == nil:
		lease := live.DeepCopy()
		at, grace := now(), int64(0)
		lease.DeletionTimestamp, lease.DeletionGracePeriodSeconds = &at, &grace
		s.store(key, lease, r.owners, r.valid, w.client)
	}
	return nil
}

func (s *Server) deleteAll(w writer, namespace string, opts metav1.DeleteOptions, listOpts metav1.ListOptions) error {
	sel, err := newSelection(namespace, listOpts)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, l := range s.selected(sel) {
		if err := s.deleteLocked(w, types.NamespacedName{Namespace: l.Namespace, Name: l.Name}, opts); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) list(namespace string, opts metav1.ListOptions) (*coordinationv1.LeaseList, error) {
	sel, err := newSelection(namespace, opts)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	list := &coordinationv1.LeaseList{ListMeta: metav1.ListMeta{ResourceVersion: formatRV(s.rv)},
		Items: []coordinationv1.Lease{}}
	for _, l := range s.selected(sel) {
		list.Items = append(list.Items, *l.DeepCopy())
	}
	return list, nil
}

// checkIdentity does the checks that come before the comparison of resourceVersions.
func checkIdentity(key types.NamespacedName, lease *coordinationv1.Lease, exists bool) error {
	if !exists && lease.UID != "" {
		return apierrors.NewConflict(leasesResource, key.Name, fmt.Errorf(
			"uid mismatch: the provided object specified uid %s, and no existing object was found", lease.UID))
	}
	if err := checkNamespace(lease, key.Namespace); err != nil {
		return err
	}
	if lease.Name != key.Name {
		if lease.Name == "" {
			return apierrors.NewBadRequest(fmt.Sprintf(
				"the name of the object (%s based on URL) was undeterminable: name must be provided", key.Name))
		}
		return apierrors.NewBadRequest(fmt.Sprintf(
			"the name of the object (%s) does not match the name on the URL (%s)", lease.Name, key.Name))
	}
	return nil
}

// checkNamespace gives the lease the namespace if it has none.
func checkNamespace(lease *coordinationv1.Lease, namespace string) error {
	if lease.Namespace == "" {
		lease.Namespace = namespace
	}
	if lease.Namespace != namespace {
		return apierrors.NewBadRequest(
			"the namespace of the provided object does not match the namespace sent on the request")
	}
	return nil
}

// keepSystemFields restores the fields that a client may not change.
func keepSystemFields(lease, live *coordinationv1.Lease) {
	lease.Generation = live.Generation
	if lease.UID == "" {
		lease.UID = live.UID
	}
	lease.CreationTimestamp = live.CreationTimestamp
	if live.DeletionTimestamp != nil {
		lease.DeletionTimestamp = live.DeletionTimestamp
		if lease.DeletionGracePeriodSeconds == nil {
			lease.DeletionGracePeriodSeconds = live.DeletionGracePeriodSeconds
		}
	}
}

// sameLease reports whether a and b differ in nothing but the times in managedFields.
func sameLease(a, b *coordinationv1.Lease) bool {
	set, gone, ok := compareSpecs(&b.Spec, &a.Spec)
	return set == 0 && gone == 0 && ok &&
		sameMetadata(&a.ObjectMeta, &b.ObjectMeta) && a.DeletionTimestamp.Equal(b.DeletionTimestamp) &&
		sameFields(a.ManagedFields, b.ManagedFields, false)
}

func sameFields(a, b []metav1.ManagedFieldsEntry, times bool) bool {
	return slices.EqualFunc(a, b, func(a, b metav1.ManagedFieldsEntry) bool {
		return a.Manager == b.Manager && a.Operation == b.Operation && a.APIVersion == b.APIVersion &&
			a.Subresource == b.Subresource &&
			(a.FieldsV1 == b.FieldsV1 ||
				a.FieldsV1 != nil && b.FieldsV1 != nil && a.FieldsV1.GetRawString() == b.FieldsV1.GetRawString()) &&
			(!times || a.Time.Equal(b.Time))
	})
}

// objectRV returns the resourceVersion in the lease, 0 if it has none.
func objectRV(l *coordinationv1.Lease) (uint64, error) {
	if l.ResourceVersion == "" {
		return 0, nil
	}
	return strconv.ParseUint(l.ResourceVersion, 10, 64)
}

func staleRV(key types.NamespacedName) error {
	return apierrors.NewConflict(leasesResource, key.Name, errors.New(
		"the object has been modified; please apply your changes to the latest version and try again"))
}

func invalidOptions(kind string, errs field.ErrorList) error {
	return apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: kind}, "", errs)
}

// statusUnknown returns the server's status for an error that has none.
func statusUnknown(message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: 500, Message: message}}
}
