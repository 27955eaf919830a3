package server

import "github.com/nextstack/nextstack/api"

func (s *Server) routeProjects() { readable[api.Project](s) }

func (s *Server) routeStorage() {
	readable[api.Pool](s)
	creatable(s, api.KindPool, "The directory is prepared on every agent of the pool.", Admission.CreatePool)
	updatable(s, api.KindPool, Admission.UpdatePool)
	deletable(s, api.KindPool, "It must hold no volumes.", Admission.DeletePool)

	readable[api.Image](s)
	creatable(s, api.KindImage, "From an upload (PUT /v1/uploads/{id} first) or from a file on the server.", Admission.CreateImage)
	deletable(s, api.KindImage, "No volume must have been made from it.", Admission.DeleteImage)

	s.routeVolumes()
}
