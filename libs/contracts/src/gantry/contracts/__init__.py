"""The wire contracts: one generated module per file of ``proto/``, at the same path below this package.

From ``proto/containerd/services/tasks/v1/tasks.proto`` come ``gantry.contracts.containerd.services.tasks.v1.tasks_pb2``
and, because it defines a service, ``tasks_pb2_grpc`` beside it. Importing a ``_pb2`` module never imports grpc.
"""
